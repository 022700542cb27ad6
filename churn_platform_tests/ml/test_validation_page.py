"""The page of a window says what was found in words that a browser shows as they are, whatever they hold."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd
import pytest

from churn_platform.ml import expectations, ingestion, validation, validation_page
from churn_platform_tests.worlds import PURCHASES, all_windows, changed, engine, landed

pytestmark = pytest.mark.usefixtures("home")

EVIL = "<script>alert('x')</script>&"


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page(volumes: dict[str, int], finding: validation.Finding) -> _Text:
    contract = changed(
        PURCHASES,
        ("shop: {type: string, nullable: true}", f'shop: {{type: string, nullable: true, allowed: ["{EVIL}", north]}}'),
    )
    frame = pd.DataFrame(
        {"client_no": "c1", "receipt": "r1", "bought_at": "2024-01-05", "paid": [1, -1], "shop": ["north", EVIL + "?"]}
    )
    with engine(contract) as con:
        first = all_windows(contract)[0]
        ingestion.typed_rows(con, contract, "transactions", landed(con, frame.astype(str)), first).create("raw")
        divided = validation.split(con, contract, "transactions", "raw")
        con.execute("CREATE VIEW judged AS SELECT * EXCLUDE (_source) FROM raw")
        verdict = expectations.count(con, contract, "transactions", "judged")
        read = _Text()
        read.feed(
            validation_page.render(
                contract,
                "transactions",
                first.key,
                divided,
                findings=[finding],
                verdict=verdict,
                volumes=volumes,
            )
        )
    return read


def test_what_a_contract_or_a_check_says_is_shown_and_not_run() -> None:
    read = page({"2024-01-01": 1}, validation.Finding("a_check", False, f"found {EVIL}", f"do {EVIL}"))
    assert "script" not in read.tags
    said = " ".join(read.words)
    for words in (f"found {EVIL}", f"do {EVIL}", f"one of {EVIL}, north", "paid is below 0"):
        assert words in said
    assert "refused" in said


def test_a_window_that_passed_has_no_remedy_and_a_bar_for_each_window() -> None:
    read = page({"2024-01-01": 0, "2024-02-01": 12_345}, validation.Finding("a_check", True, "fine", "do nothing"))
    said = " ".join(read.words)
    assert "do nothing" not in said
    assert "published" in said
    assert "2024-02-01: 12,345 rows" in said
    assert read.tags.count("rect") == 2

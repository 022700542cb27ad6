"""The validated asset: a window that is wrong as a whole is refused, a page says why, a large one is judged alike."""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd
import pytest

from churn_platform.ml import expectations
from churn_platform_tests import graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WINDOWS = [f"2023-{month:02}-01" for month in range(2, 7)]
JUNE = WINDOWS[-1]


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    """In memory: nothing here is read from the event log later."""
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture(scope="module")
def _four_months(instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory) -> graph.Platform:
    """A platform of which the purchases of all months but the last are validated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expectations, "LIMIT", -1)  # the engine gives the same verdicts, in no time
        found = graph.landed().copy(tmp_path_factory.mktemp("shop")).use(patch)
        found.instance = instance
        for key in WINDOWS[:-1]:
            assert take_in(found, key).success
    graph.forget()
    return found


@pytest.fixture
def shop(
    _four_months: graph.Platform, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> graph.Platform:
    found = _four_months.copy(tmp_path).use(monkeypatch)
    found.instance = instance
    return found


def take_in(shop: graph.Platform, key: str, table: str = "transactions") -> dg.ExecuteInProcessResult:
    return shop.materialize(f"raw_{table}", f"validated_{table}", key=key)


def spoil(shop: graph.Platform, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change what landed in June; the source is one Parquet file."""
    (path,) = (shop.settings.landing / shop.contract.name / "transactions").glob(f"{JUNE}*")
    change(pd.read_parquet(path)).to_parquet(path)


def said(result: dg.ExecuteInProcessResult, check: str) -> dict[str, Any]:
    (found,) = (found for found in result.get_asset_check_evaluations() if found.check_name == check)
    return {"passed": found.passed, **{name: entry.value for name, entry in found.metadata.items()}}


def page_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


SPOILT: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "a part of it": ("volume_is_usual", lambda rows: rows.sample(frac=0.2, random_state=1)),
    "a part of it twice": ("rows_are_not_repeated", lambda rows: pd.concat([rows, rows[:200]])),
    "the first ten days": (
        "reaches_the_windows_end",
        lambda rows: rows[rows["purchase_time"] < pd.Timestamp("2023-06-11", tz="UTC")],
    ),
    "other people": (
        "customers_are_known",
        lambda rows: rows.assign(customer_id="x" + rows["customer_id"].astype(str)),
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_an_export_that_is_wrong_as_a_whole_is_refused(shop: graph.Platform, kind: str) -> None:
    check, change = SPOILT[kind]
    spoil(shop, change)
    result = take_in(shop, JUNE)
    assert not result.success
    assert JUNE not in shop.tables.windows("validated_transactions")
    assert JUNE not in shop.tables.windows("profile_transactions")
    found = said(result, check)
    assert not found["passed"]
    assert "tables.transactions." in found["what_to_do"]
    page = page_of(found["report_path"])
    assert "refused" in page
    assert escape(found["verdict"]) in page
    shown = found["tables_of_the_report"]  # where a browser opens no file
    assert f"| {check.replace('_', ' ')} | **failed** | {found['verdict']}" in shown
    assert "expect_column_values_to_not_be_null" in shown


def test_a_refused_window_passes_once_the_export_is_whole_and_judging_it_again_says_the_same(
    shop: graph.Platform,
) -> None:
    spoil(shop, lambda rows: rows.sample(frac=0.2, random_state=1))
    first, second = (said(take_in(shop, JUNE), "volume_is_usual") for _ in range(2))
    assert first == second
    whole = graph.landed()
    (path,) = (whole.settings.landing / whole.contract.name / "transactions").glob(f"{JUNE}*")
    spoil(shop, lambda _: pd.read_parquet(path))
    assert take_in(shop, JUNE).success
    before = shop.rows("profile_transactions")
    assert take_in(shop, WINDOWS[2]).success  # an older window, again: later ones do not count
    pd.testing.assert_frame_equal(shop.rows("profile_transactions"), before)


def test_a_large_window_is_judged_by_the_engine_with_the_same_verdicts(
    shop: graph.Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(shop, lambda rows: rows.assign(amount=rows["amount"].where(rows.index % 200 != 0, -1.0)))
    small = take_in(shop, JUNE)
    monkeypatch.setattr(expectations, "LIMIT", 10)
    large = take_in(shop, JUNE)
    assert small.success
    assert large.success
    tables = [graph.metadata(result, "validated_transactions")["great_expectations"] for result in (small, large)]
    assert tables[0] == tables[1]
    judges = [said(result, "great_expectations_suite_passes")["verdict"] for result in (small, large)]
    assert [verdict.partition("judged by ")[2] for verdict in judges] == ["Great Expectations", "the engine (DuckDB)"]


class _Addresses(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_of_a_window_shows_its_verdicts_reasons_and_volumes_and_loads_nothing(shop: graph.Platform) -> None:
    spoil(shop, lambda rows: rows.assign(amount=rows["amount"].where(rows.index % 200 != 0, -7654321.0)))
    result = take_in(shop, JUNE)
    found = graph.metadata(result, "validated_transactions")
    page = page_of(found["report_path"])
    assert Path(found["report_path"]).is_relative_to(shop.home / "reports")
    read = _Addresses()
    read.feed(page)
    assert read.found == []
    assert "script" not in read.tags
    assert "svg" in read.tags
    assert "published" in page
    assert "amount is below 0" in page
    assert "7654321" not in page
    assert "expect_column_values_to_be_between" in page
    for key in WINDOWS:
        assert f"{key}: {len(shop.rows('validated_transactions', key)):,} rows" in page
    for check in result.get_asset_check_evaluations():
        assert check.check_name.replace("_", " ") in page


def test_people_who_sign_up_are_no_other_people_than_before(shop: graph.Platform) -> None:
    for key in WINDOWS[:2]:
        result = take_in(shop, key, "customers")
        assert result.success
    assert "brings new customers" in said(result, "customers_are_known")["verdict"]

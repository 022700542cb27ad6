"""`churn contract check` finds at the source what would stop a play, and leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from churn_platform.settings import settings
from churn_platform.source_check import look
from churn_platform.sources import SourceError
from churn_platform_tests.worlds import PURCHASES, WIDE, changed

if TYPE_CHECKING:
    from pathlib import Path

    from churn_platform.contract import Contract

pytestmark = pytest.mark.usefixtures("home")
HEADER = "client_no,receipt,bought_at,paid,shop\n"
MEMBERS = "member_id,plan,visits,left\n"


def said(contract: Contract, folder: Path) -> str:
    return look(contract, settings().model_copy(update={"contract": folder / "contract.yaml"}))


def refusal(contract: Contract, folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        said(contract, folder)
    return str(caught.value)


def purchases(folder: Path, months: int, paid: str = "2.50") -> None:
    lines = [
        f"c{day % 5},r{m}-{day},2024-{m:02}-{day:02},{paid},\n" for m in range(1, months + 1) for day in (1, 9, 31)
    ]
    text = "".join(lines).replace("2024-02-31", "2024-02-29").replace("2024-04-31", "2024-04-30")
    (folder / "purchases.csv").write_text(HEADER + text)


def members(folder: Path, labels: list[str]) -> Contract:
    lines = [f"m{place},gold,3,{label}\n" for place, label in enumerate(labels)]
    (folder / "members.csv").write_text(MEMBERS + "".join(lines))
    return changed(WIDE, ("time: as_of", "observed_at: 2024-03-15"), ("      as_of: {type: timestamp}\n", ""))


def test_a_source_that_fits_is_described_and_nothing_is_written(tmp_path: Path, home: Path) -> None:
    purchases(tmp_path, months=5)
    words = said(changed(PURCHASES), tmp_path)
    assert "5 monthly windows, 2024-01-01 to 2024-05-01" in words
    assert "transactions, 2024-05-01: 3 rows, 0 of them bad" in words
    assert "The source fits the contract." in words
    assert not (home / "pii_key").exists()
    assert not (home / "warehouse").exists()


def test_history_too_short_for_a_model_is_told_beforehand(tmp_path: Path) -> None:
    purchases(tmp_path, months=1)
    assert "too short for a first model" in said(changed(PURCHASES), tmp_path)


def test_bad_rows_are_counted_and_refused_with_what_to_do(tmp_path: Path) -> None:
    purchases(tmp_path, months=2, paid='"2,50"')
    words = refusal(changed(PURCHASES), tmp_path)
    assert "3 of 3 rows (100.00%) are bad" in words
    assert "`type` and `decimal` say how a number is written" in words


def test_a_history_that_begins_later_is_told_to_move_its_start(tmp_path: Path) -> None:
    purchases(tmp_path, months=2)
    assert "move time.start" in refusal(changed(PURCHASES, ("2024-01-01", "2023-10-01")), tmp_path)


def test_a_misspelt_label_shows_what_the_column_holds(tmp_path: Path) -> None:
    contract = members(tmp_path, ["yes"] * 3 + ["No"] * 97)
    words = refusal(contract, tmp_path)
    assert "0 of 100 labelled rows have left = 'Yes'; the column holds 'No' (97 rows), 'yes' (3 rows)" in words
    assert "label.positive" in words


def test_a_table_without_dates_is_looked_at_once(tmp_path: Path) -> None:
    words = said(members(tmp_path, ["Yes", "No"] * 10), tmp_path)
    assert words.count("snapshots, ") == 1
    assert "20 rows" in words

"""Windows follow each other without gap or overlap, in the contract's own zone."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from churn_platform.windows import window, windows
from churn_platform_tests.worlds import PURCHASES, WIDE, all_windows, changed, instant


@pytest.mark.parametrize("cadence", ["daily", "weekly", "monthly"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Auckland"])
def test_windows_meet_and_cover_the_history(cadence: str, zone: str) -> None:
    contract = changed(PURCHASES, ("monthly", cadence), ("timezone: UTC", f"timezone: {zone}"))
    found = all_windows(contract)
    assert all(before.end == after.start for before, after in pairwise(found))
    assert found[0].key == "2024-01-01"
    assert found[-1].end.astimezone(contract.zone).strftime("%Y-%m-%d %H") == "2024-07-01 00"
    assert len(found) == {"daily": 182, "weekly": 26, "monthly": 6}[cadence]


def test_a_day_with_a_change_of_clocks_has_another_length() -> None:
    contract = changed(PURCHASES, ("monthly", "daily"), ("timezone: UTC", "timezone: Europe/Berlin"))
    spring = window(contract, "2024-03-31")
    assert (spring.end - spring.start).total_seconds() == 23 * 3600


def test_a_window_is_not_there_before_it_is_over() -> None:
    contract = changed(PURCHASES)
    keys = [found.key for found in windows(contract, instant("2024-02-29T23:59:59"))]
    assert keys == ["2024-01-01"]
    assert [found.key for found in windows(contract, instant("2024-03-01"))] == ["2024-01-01", "2024-02-01"]


def test_every_window_is_found_by_its_key() -> None:
    for cadence in ("daily", "weekly", "monthly"):
        contract = changed(PURCHASES, ("monthly", cadence), ("timezone: UTC", "timezone: Europe/Berlin"))
        for each in all_windows(contract):
            assert window(contract, each.key) == each


@pytest.mark.parametrize(
    "key", ["2024-01-02", "2023-12-01", "2024-07-01", "9999-12-01", "9999-12-31", "20240101", "2024-W01-1", "soon", ""]
)
def test_a_key_that_names_no_window_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"window"):
        window(changed(PURCHASES), key)


def test_without_an_end_history_goes_on() -> None:
    contract = changed(PURCHASES, (", end: 2024-07-01", ""))
    assert window(contract, "2099-05-01").end == datetime(2099, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(("observed", "first"), [("2024-03-15", "2024-03-01"), ("2024-03-01", "2024-02-01")])
def test_a_table_without_dates_begins_with_the_window_in_which_it_was_observed(observed: str, first: str) -> None:
    assert all_windows(changed(WIDE, ("time: as_of", f"observed_at: {observed}")))[0].key == first

"""A window beside those before it: exports that are wrong as a whole are refused, and ordinary seasons are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_platform.contract import Contract
from churn_platform.ml import comparison, validation
from churn_platform.ml.comparison import Profile
from churn_platform.windows import window
from churn_platform_tests.worlds import PURCHASES, WIDE, changed, engine

pytestmark = pytest.mark.usefixtures("home")

SHOP = changed(PURCHASES, ("time: {start: 2024-01-01, end: 2024-07-01", "time: {start: 2022-01-01, end: 2026-01-01"))
LIST = PURCHASES.replace(
    "features:\n",
    "  customers:\n    path: people.csv\n    customer: who\n    columns:\n      who: {type: string}\nfeatures:\n",
)
MONTHS = [f"{year}-{month:02}-01" for year in (2022, 2023) for month in range(1, 13)]


def bounded(**keys: Any) -> Contract:
    """The shop's contract with keys under tables.transactions."""
    lines = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    return changed(PURCHASES, ("    order: receipt\n", "    order: receipt\n" + lines))


def month(rows: int = 1000, **values: Any) -> Profile:
    return Profile(
        **{"rows": rows, "customers": rows // 2, "overlap": 0.6, "repeated": 0.01, "silence_days": 0.2} | values
    )


def judged(
    now: Profile, past: list[Profile], contract: Contract = SHOP, table: str = "transactions"
) -> dict[str, validation.Finding]:
    known = dict(zip(MONTHS, past, strict=False))
    found = comparison.findings(contract, table, MONTHS[len(past)], now, known)
    assert [finding.name for finding in found] == list(comparison.names(contract.tables.items()[table]))
    return {finding.name: finding for finding in found}


def failed(now: Profile, past: list[Profile], contract: Contract = SHOP, table: str = "transactions") -> list[str]:
    return [name for name, finding in judged(now, past, contract, table).items() if not finding.passed]


STEADY = [month(rows) for rows in (1000, 950, 1040, 980, 1010)]


@pytest.mark.parametrize(
    ("wrong", "check", "words", "key"),
    [
        ({"rows": 500}, "volume_is_usual", "500 rows; the 4 windows before had 950 to 1,040", "min_volume"),
        ({"rows": 4000}, "volume_is_usual", "4,000 rows", "max_volume"),
        ({"rows": 2000, "repeated": 1.0}, "rows_are_not_repeated", "100.0% of the rows are equal", "max_repeated"),
        ({"repeated": 0.064}, "rows_are_not_repeated", "at most 3.5% may be", "max_repeated"),
        ({"overlap": 0.0}, "customers_are_known", "0.0% of the customers are in common", "min_overlap"),
        ({"silence_days": 14.5}, "reaches_the_windows_end", "14.5 days before the window's end", "max_silence_days"),
    ],
    ids=["half of it", "four times it", "all twice", "a day twice", "other people", "ends in the middle"],
)
def test_an_export_that_is_wrong_as_a_whole_is_refused(wrong: dict[str, Any], check: str, words: str, key: str) -> None:
    assert failed(month(), STEADY) == []
    found = judged(month(**wrong), STEADY)
    assert [name for name, finding in found.items() if not finding.passed] == [check]
    assert words in found[check].words
    assert f"tables.transactions.{key}" in found[check].remedy


def test_a_season_is_no_reason_to_refuse() -> None:
    """A shop that sells half more before Christmas and a third less after it, with a closure between the years."""
    season = [0.8, 0.75, 0.9, 1.0, 1.0, 0.95, 0.85, 0.8, 1.0, 1.1, 1.5, 1.6]
    past: list[Profile] = []
    for n in range(24):
        closed = 8.5 if n % 12 == 11 else 0.3
        now = month(int(1000 * season[n % 12] * 1.02**n), silence_days=closed, overlap=0.5 + 0.2 * season[n % 12] / 2)
        assert failed(now, past) == [], MONTHS[n]
        past.append(now)


def test_a_fall_of_the_past_year_may_come_again_and_half_an_export_of_a_steady_shop_may_not() -> None:
    garden = [month(rows) for rows in (1000, 1000, 1000, 1000, 1000, 400, 400, 400, 1000, 1000, 1000, 1000)]
    assert failed(month(420), garden[:5]) == ["volume_is_usual"]
    assert failed(month(420), garden) == []
    assert failed(month(200), garden) == ["volume_is_usual"]


def test_the_first_windows_are_compared_with_nothing_and_it_is_said() -> None:
    assert failed(month(overlap=None), []) == []
    for known in range(1, comparison.ENOUGH):
        found = judged(month(100, overlap=0.01, silence_days=20), STEADY[:known])
        assert all(finding.passed for finding in found.values())
        assert f"not compared: {known} earlier windows" in found["volume_is_usual"].words


def test_a_first_window_that_came_twice_is_refused() -> None:
    assert failed(month(repeated=1.0), []) == ["rows_are_not_repeated"]


def test_windows_of_a_few_rows_say_nothing() -> None:
    assert failed(month(3, overlap=0.0, silence_days=25, repeated=1.0), [month(n) for n in (12, 20, 8, 15, 30)]) == []


def test_days_are_compared_with_the_same_day_of_the_week() -> None:
    contract = changed(PURCHASES, ("cadence: monthly", "cadence: daily"))
    days = [day.strftime("%Y-%m-%d") for day in pd.date_range("2024-01-01", periods=35)]  # from a Monday on
    rows = {key: month(30 if n % 7 == 6 else 1000) for n, key in enumerate(days)}
    assert comparison.compared(contract, "2024-02-04", days) == ["2024-01-07", "2024-01-14", "2024-01-21", "2024-01-28"]
    sunday, monday = (
        comparison.findings(contract, "transactions", key, month(30), rows) for key in [*days[-1:], "2024-02-05"]
    )
    assert all(finding.passed for finding in sunday)
    assert [finding.name for finding in monday if not finding.passed] == ["volume_is_usual"]


def test_a_day_that_may_be_empty_and_is_passes() -> None:
    contract = bounded(min_rows=0)
    assert failed(Profile(0, 0, None, 0.0, None), STEADY, contract) == []
    assert failed(Profile(0, 0, None, 0.0, None), STEADY) == ["volume_is_usual"]


def test_only_earlier_windows_count_so_judging_again_gives_the_same_verdict() -> None:
    past = dict(zip(MONTHS, STEADY, strict=False))
    later = {key: month(90_000) for key in MONTHS[5:9]}
    first = comparison.findings(SHOP, "transactions", MONTHS[5], month(500), past)
    assert comparison.findings(SHOP, "transactions", MONTHS[5], month(500), past | later) == first
    assert comparison.neighbours(SHOP, MONTHS[5], MONTHS) == [MONTHS[4]]


@pytest.mark.parametrize(
    ("keys", "now"),
    [
        ({"min_overlap": 0.7}, {"overlap": 0.69}),
        ({"max_repeated": 0.0}, {"repeated": 0.001}),
        ({"max_silence_days": 1}, {"silence_days": 1.01}),
    ],
    ids=str,
)
def test_a_bound_that_the_contract_states_holds_from_the_first_windows_on(
    keys: dict[str, Any], now: dict[str, Any]
) -> None:
    assert len(failed(month(**now), STEADY[:1], bounded(**keys))) == 1
    assert failed(month(**now), STEADY[:1]) == []


@pytest.mark.parametrize(
    ("keys", "rows", "passes"),
    [
        ({"min_volume": 0.3}, 300, True),
        ({"min_volume": 0.3}, 280, False),
        ({"min_volume": 0}, 0, True),
        ({"max_volume": 10}, 10_000, True),
        ({"max_volume": 1.5}, 1600, False),
    ],
    ids=str,
)
def test_the_contract_says_how_much_volumes_may_differ(keys: dict[str, Any], rows: int, passes: bool) -> None:
    assert judged(month(rows), STEADY, bounded(**keys))["volume_is_usual"].passed is passes


def test_people_do_not_vanish_from_a_list_of_customers() -> None:
    contract = changed(LIST)
    one = [Profile(800, 800, None, 0.0, None)]
    assert failed(Profile(810, 810, 0.99, 0.0, None), one, contract, "customers") == []
    assert failed(Profile(2000, 2000, 1.0, 0.0, None), one, contract, "customers") == []
    assert failed(Profile(800, 800, 0.02, 0.0, None), one, contract, "customers") == ["customers_are_known"]
    assert failed(Profile(400, 400, 1.0, 0.0, None), one, contract, "customers") == ["volume_is_usual"]


def test_sign_ups_come_in_bursts_of_new_people() -> None:
    contract = changed(
        LIST.replace("customer: who\n", "customer: who\n    time: since\n").replace(
            "who: {type: string}\n", "who: {type: string}\n      since: {type: timestamp}\n"
        )
    )
    past = [month(rows, overlap=0.0, silence_days=9) for rows in (5000, 60, 900, 70, 80)]
    assert failed(month(9000, overlap=0.0, silence_days=25), past, contract, "customers") == []
    assert failed(month(1, overlap=0.0), past, contract, "customers") == []


# -- the profile itself


def profile(contract: Contract, frame: pd.DataFrame, before: pd.DataFrame | None = None) -> Profile:
    with engine(contract) as con:
        con.register("frame", frame)
        divided = validation.Split(con.sql("FROM frame"), con.sql("FROM frame"), len(frame), 0, {})
        if before is not None:
            con.register("before", before)
        there = None if before is None else "before"
        return comparison.profile(
            con, contract, "transactions", divided, window=window(contract, "2024-01-01"), before=there
        )


LINE = st.tuples(
    st.sampled_from(["a", "b", "c", "é"]), st.sampled_from(["r1", "r2"]), st.integers(0, 2), st.sampled_from([1.0, 2.0])
)


def lines(rows: list[tuple[str, str, int, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["client_no", "receipt", "bought_at", "paid"])
    frame["bought_at"] = pd.Timestamp("2024-01-20", tz="UTC") + pd.to_timedelta(frame["bought_at"], unit="D")
    return frame.assign(shop=None)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(LINE, min_size=1, max_size=20), st.lists(LINE, min_size=1, max_size=10))
def test_a_profile_counts_what_a_person_would(
    rows: list[tuple[str, str, int, float]], before: list[tuple[str, str, int, float]]
) -> None:
    contract = changed(PURCHASES)
    found = profile(contract, lines(rows), lines(before))
    now, then = {row[0] for row in rows}, {row[0] for row in before}
    assert found.rows == len(rows)
    assert found.customers == len(now)
    assert found.overlap == pytest.approx(len(now & then) / min(len(now), len(then)))
    assert found.repeated == pytest.approx(sum(rows.count(row) > 1 for row in rows) / len(rows))
    assert found.silence_days == pytest.approx(12 - max(row[2] for row in rows))


def test_of_many_rows_a_part_is_looked_at_and_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    rows = 40_000
    frame = pd.DataFrame(
        {
            "client_no": [f"c{n}" for n in random.integers(0, 8000, rows)],
            "receipt": [f"r{n}" for n in range(rows)],
            "bought_at": pd.Timestamp("2024-01-05", tz="UTC"),
            "paid": 1.0,
            "shop": None,
        }
    )
    frame = pd.concat([frame, frame[: rows // 10]])
    contract = changed(PURCHASES)
    known = frame[frame["client_no"].str.len() == 4]  # c100 to c999: 900 of 8000
    whole = profile(contract, frame, known)
    monkeypatch.setattr(comparison, "LOOKED_AT", 5000)
    part = profile(contract, frame, known)
    assert whole.repeated == pytest.approx(2 / 11, abs=0.001)
    assert part.repeated == pytest.approx(whole.repeated, abs=0.03)
    assert part.customers == pytest.approx(whole.customers, rel=0.1)
    assert part.overlap == whole.overlap == 1.0
    assert part.rows == whole.rows


def test_a_stored_profile_comes_back_as_it_was() -> None:
    with engine(SHOP) as con:
        for found in (month(), Profile(0, 0, None, 0.0, None)):
            comparison.as_rows(con, found).create_view("stored", replace=True)
            con.execute("CREATE OR REPLACE TEMP VIEW kept AS SELECT *, '2024-01-01' AS _window FROM stored")
            assert comparison.from_rows(con, "kept") == {"2024-01-01": found}


def test_a_wide_table_is_compared_too() -> None:
    assert set(judged(month(), STEADY[:2], changed(WIDE), "snapshots")) == {
        "volume_is_usual",
        "customers_are_known",
        "rows_are_not_repeated",
        "reaches_the_windows_end",
    }

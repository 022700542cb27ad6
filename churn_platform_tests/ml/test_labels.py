"""A label exists from the moment at which it may be known, once, and never earlier."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest

from churn_platform.contract import Contract, as_utc, days_after
from churn_platform.ml import labels
from churn_platform.windows import Window
from churn_platform_tests.worlds import PURCHASES, WIDE, all_windows, changed, engine, instant, purchases, validated

pytestmark = pytest.mark.usefixtures("home")


def matured(contract: Contract, rows: pd.DataFrame, window: Window, zone: str | None = None) -> pd.DataFrame:
    with engine(contract) as con:
        if zone is not None:
            con.execute(f"SET TimeZone = '{zone}'")
        validated(con, contract.main_table, rows)
        return labels.build(con, contract, window).df()


def every(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """The labels of all windows, with the end of the window that they matured in."""
    parts = [matured(contract, rows, window).assign(end=window.end) for window in all_windows(contract)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def bought(*times: datetime, customer: str = "c") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "client_no": customer,
            "receipt": [str(n) for n in range(len(times))],
            "bought_at": list(times),
            "paid": 1.0,
            "shop": "x",
        }
    )


CONTRACT = changed(PURCHASES)
T = instant("2024-03-01")  # an observation: the end of February; its horizon ends on 2024-03-29


def churned(contract: Contract, *times: datetime) -> int | None:
    """The label of the observation at T, or None."""
    found = every(contract, bought(T - timedelta(days=5), *times))
    found = found[found["snapshot_time"] == T]
    return int(found["churned"].iloc[0]) if len(found) else None


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (T, 0),
        (T + timedelta(days=28) - timedelta(microseconds=1), 0),
        (T + timedelta(days=28), 1),
        (T - timedelta(microseconds=1), 1),
    ],
)
def test_a_purchase_in_the_horizon_and_no_other_keeps_a_customer(time: datetime, expected: int) -> None:
    assert churned(CONTRACT, time) == expected


@pytest.mark.parametrize(("days", "expected"), [(0, 1), (6.9, 1), (7, 0), (34.9, 0), (35, 1)])
def test_with_a_lead_the_horizon_begins_later(days: float, expected: int) -> None:
    assert churned(changed(PURCHASES, ("lead_days: 0", "lead_days: 7")), T + timedelta(days=days)) == expected


@pytest.mark.parametrize(("days", "labelled"), [(60, True), (60.001, False), (0.001, True)])
def test_only_customers_who_bought_recently_are_labelled(days: float, labelled: bool) -> None:
    rows = bought(T - timedelta(days=days))
    found = every(CONTRACT, rows)
    assert (T in set(found["snapshot_time"])) == labelled if len(found) else not labelled


def test_who_comes_only_after_the_observation_is_not_labelled_for_it() -> None:
    found = every(CONTRACT, pd.concat([bought(T + timedelta(days=1), customer="new"), bought(T - timedelta(days=1))]))
    assert set(found[found["snapshot_time"] == T]["client"]) == {"c"}


def test_a_purchase_that_arrived_after_the_observation_makes_nobody_a_customer_at_risk_but_keeps_one() -> None:
    contract = changed(
        PURCHASES,
        ("    order: receipt\n", "    order: receipt\n    arrived: landed_at\n"),
        ("      shop: {", "      landed_at: {type: timestamp}\n      shop: {"),
    )

    def landing(customer: str, days: float, window: str) -> pd.DataFrame:
        return bought(T + timedelta(days=days), customer=customer).assign(landed_at=instant(window), _window=window)

    rows = pd.concat(
        [
            landing("late", -5, "2024-03-01"),  # bought before the observation, which nobody knew then
            landing("known", -5, "2024-02-01"),
            landing("stays", -5, "2024-02-01"),
            landing("stays", 5, "2024-04-01"),  # bought in the horizon, which was known after it only
        ]
    )
    found = matured(contract, rows, next(window for window in all_windows(contract) if window.key == "2024-03-01"))
    assert dict(zip(found["client"], found["churned"], strict=True)) == {"known": 1, "stays": 0}


def test_before_the_warm_up_nothing_is_observed() -> None:
    first = every(CONTRACT, purchases(1, days=180))["snapshot_time"].min()
    assert first == instant("2024-02-01")
    assert every(changed(PURCHASES, ("warmup_days: 31", "warmup_days: 32")), purchases(1))["snapshot_time"].min() == T


SHAPES = [
    (),
    (("lead_days: 0", "lead_days: 10"),),
    (("horizon_days: 28", "horizon_days: 60"),),
    (("horizon_days: 28", "horizon_days: 90"), ("lead_days: 0", "lead_days: 14")),
    (("monthly", "weekly"), ("horizon_days: 28", "horizon_days: 10")),
    (("timezone: UTC", "timezone: Europe/Berlin"),),
    (
        ("timezone: UTC", "timezone: Europe/Berlin"),
        ("monthly", "daily"),
        ("horizon_days: 28", "horizon_days: 5"),
        ("end: 2024-07-01", "end: 2024-04-10"),
    ),
    (("horizon_days: 28", "horizon_days: 1"),),
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_over_all_windows_each_customer_and_observation_is_labelled_once_and_none_too_early(
    changes: tuple[tuple[str, str], ...],
) -> None:
    contract = changed(PURCHASES, *changes)
    found = every(contract, purchases(2, customers=20, rows=400))
    assert len(found) > 10
    assert not found.duplicated(["client", "snapshot_time"]).any()
    assert (found["label_matured_at"] <= found["end"]).all()
    label = contract.label
    assert label is not None
    for row in found.itertuples():
        waited = days_after(row.snapshot_time.to_pydatetime(), label.lead_days + label.horizon_days, contract.zone)
        assert row.label_matured_at == waited


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_every_observation_whose_horizon_is_over_is_labelled(changes: tuple[tuple[str, str], ...]) -> None:
    contract = changed(PURCHASES, *changes)
    label = contract.label
    assert label is not None
    found = Counter(time for window in all_windows(contract) for time in labels.matured_observations(contract, window))
    ends = [window.end for window in all_windows(contract)]
    first = days_after(as_utc(contract.time.start, contract.zone), label.warmup_days, contract.zone)
    wait = label.lead_days + label.horizon_days
    assert found == Counter(end for end in ends if end >= first and days_after(end, wait, contract.zone) <= ends[-1])


def test_labels_do_not_depend_on_what_happens_after_their_window() -> None:
    rows = purchases(3, customers=20, rows=400)
    for window in all_windows(CONTRACT):
        whole, known = matured(CONTRACT, rows, window), matured(CONTRACT, rows[rows["bought_at"] < window.end], window)
        pd.testing.assert_frame_equal(whole, known)


def test_labels_are_those_of_a_plain_reading() -> None:
    rows = purchases(4, customers=30, rows=300)
    found = every(CONTRACT, rows)
    plain = {}
    for end in (window.end for window in all_windows(CONTRACT)):
        if end < instant("2024-02-01") or end + timedelta(days=28) > instant("2024-07-01"):
            continue
        for customer, own in rows.groupby("client_no")["bought_at"]:
            if ((own < end) & (own >= end - timedelta(days=60))).any():
                plain[customer, end] = int(not ((own >= end) & (own < end + timedelta(days=28))).any())
    assert {(row.client, row.snapshot_time): row.churned for row in found.itertuples()} == plain


def test_a_window_in_which_nothing_matures_is_empty_with_the_same_columns() -> None:
    first, *_, last = all_windows(CONTRACT)
    nothing, something = matured(CONTRACT, purchases(5), first), matured(CONTRACT, purchases(5), last)
    assert len(nothing) == 0
    assert (
        list(nothing.columns) == list(something.columns) == ["client", "snapshot_time", "churned", "label_matured_at"]
    )
    assert nothing.dtypes.astype(str).tolist() == something.dtypes.astype(str).tolist()


def test_numbered_customers_stay_numbers_even_where_nothing_matures() -> None:
    contract = changed(
        PURCHASES,
        ("type: string}\ntime", "type: integer}\ntime"),
        ("client_no: {type: string}", "client_no: {type: integer}"),
    )
    rows = purchases(6).assign(client_no=range(150))
    assert {str(matured(contract, rows, window)["client"].dtype) for window in all_windows(contract)} <= {
        "int64",
        "Int64",
    }


def test_a_day_without_a_time_lies_in_the_horizon_of_its_zone() -> None:
    """28 days from 20 March end on 17 April, although the clocks change between: that day is outside."""
    contract = changed(
        PURCHASES,
        ("timezone: UTC", "timezone: Europe/Berlin"),
        ("bought_at: {type: timestamp}", "bought_at: {type: date}"),
        ("monthly", "daily"),
    )
    observed = as_utc(datetime(2024, 3, 20), contract.zone)  # noqa: DTZ001
    rows = bought(datetime(2024, 3, 10), datetime(2024, 4, 17))  # noqa: DTZ001
    rows["bought_at"] = rows["bought_at"].dt.date
    (window,) = [w for w in all_windows(contract) if observed in labels.matured_observations(contract, w)]
    assert window.key == "2024-04-16"
    for zone in ("UTC", "Europe/Berlin"):
        found = matured(contract, rows, window, zone)
        assert found[found["snapshot_time"] == observed]["churned"].tolist() == [1]


# ------------------------------------------------------------------------------------------------ snapshots

YES_NO = ('positive: "Yes", negative: "No"', "left: {type: string")


def wide(rows: list[tuple[str, str, Any]], contract: Contract) -> pd.DataFrame:
    """Rows as they are validated: in the window in which their date lies."""
    frame = pd.DataFrame(rows, columns=["member_id", "as_of", "left"]).assign(plan="gold", visits=1)
    frame["as_of"] = pd.to_datetime(frame["as_of"], utc=True)
    keys = [next((w.key for w in all_windows(contract) if w.start <= time < w.end), "none") for time in frame["as_of"]]
    return frame.assign(_window=keys)


@pytest.mark.parametrize(
    ("column", "positive", "values"),
    [
        ("string", '"Yes"', ["Yes", "No", None]),
        ("string", '"1"', ["1", "0", None]),
        ("string", "1", ["1", "0", None]),
        ("integer", "1", [1, 0, None]),
        ("integer", "true", [1, 0, None]),
        ("float", "1", [1.0, 0.0, None]),
        ("float", "1.0", [1.0, 0.0, None]),
        ("boolean", "true", [True, False, None]),
        ("boolean", "1", [True, False, None]),
        ("boolean", "false", [False, True, None]),
    ],
)
def test_a_label_is_read_as_the_contract_writes_it(column: str, positive: str, values: list[Any]) -> None:
    contract = changed(WIDE, (YES_NO[0], f"positive: {positive}"), (YES_NO[1], f"left: {{type: {column}"))
    rows = wide([(f"m{n}", "2024-02-05", value) for n, value in enumerate(values)], contract)
    kinds = {"integer": "Int64", "float": "float64", "boolean": "boolean", "string": "object"}
    found = every(contract, rows.astype({"left": kinds[column]}))
    assert found.set_index("member")["churned"].to_dict() == {"m0": 1, "m1": 0}  # no label, not labelled


@pytest.mark.parametrize("wait", [0, 1, 30, 31, 45])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_the_label_of_each_row_appears_in_exactly_one_window_and_not_before_it_may_be_known(
    wait: int, zone: str
) -> None:
    contract = changed(
        WIDE, ("matures_after_days: 30", f"matures_after_days: {wait}"), ("timezone: UTC", f"timezone: {zone}")
    )
    starts = [window.start for window in all_windows(contract)[:4]]
    times = [
        time + shift for time in starts for shift in (timedelta(0), timedelta(days=1), timedelta(days=27, hours=23))
    ]
    rows = wide([(f"m{n}", time.isoformat(), "Yes") for n, time in enumerate(times)], contract)
    found = every(contract, rows)
    assert sorted(found["member"]) == sorted(rows["member_id"])
    assert (found["label_matured_at"] <= found["end"]).all()
    for row in found.itertuples():
        assert row.label_matured_at == days_after(row.snapshot_time.to_pydatetime(), wait, contract.zone)


@pytest.mark.parametrize("observed", ["2024-02-01", "2024-02-15", "2024-01-02"])
@pytest.mark.parametrize("wait", [0, 14, 29, 30])
def test_the_labels_of_a_table_without_dates_appear_once_although_it_lands_with_every_window(
    observed: str, wait: int
) -> None:
    contract = changed(
        WIDE, ("time: as_of", f"observed_at: {observed}"), ("matures_after_days: 30", f"matures_after_days: {wait}")
    )
    one = wide([("m1", "2024-01-01", "Yes"), ("m2", "2024-01-01", "No")], contract)
    landed = pd.concat([one.assign(_window=window.key) for window in all_windows(contract)])
    found = every(contract, landed)
    assert sorted(found["member"]) == ["m1", "m2"]
    assert (found["label_matured_at"] <= found["end"]).all()
    assert found["label_matured_at"].iloc[0] == instant(observed) + timedelta(days=wait)


def test_windows_meet_so_that_no_maturity_falls_between_them() -> None:
    assert all(before.end == after.start for before, after in pairwise(all_windows(CONTRACT)))

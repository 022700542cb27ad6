"""Features are what a plain reading of their definitions says, look at nothing after their time, and come out the same
to the last bit."""

from __future__ import annotations

import math
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest

from churn_platform.contract import Contract, as_utc
from churn_platform.ml import features, inputs
from churn_platform.windows import Window
from churn_platform_tests.worlds import PURCHASES, WIDE, all_windows, changed, engine, instant, purchases, validated

pytestmark = pytest.mark.usefixtures("home")

RICH = PURCHASES.replace(
    "features:\n",
    """\
  customers:
    path: c.csv
    customer: client_no
    columns:
      client_no: {type: string}
      tier: {type: string, nullable: true}
      age: {type: integer, nullable: true}
  contacts:
    path: m.csv
    customer: client_no
    time: sent_at
    columns:
      client_no: {type: string}
      sent_at: {type: timestamp}
      channel: {type: string, nullable: true}
      cost: {type: float, nullable: true}
features:
""",
).replace(
    "    months:",
    """\
    largest_line_90d: {kind: max, column: paid, window_days: 90}
    mean_line_90d: {kind: mean, column: paid, window_days: 90}
    mails_30d: {kind: count, table: contacts, window_days: 30}
    channels_90d: {kind: distinct, table: contacts, column: channel, window_days: 90}
    cost_90d: {kind: sum, table: contacts, column: cost, window_days: 90}
    mean_cost_90d: {kind: mean, table: contacts, column: cost, window_days: 90}
    mail_gap_90d: {kind: mean_gap_days, table: contacts, window_days: 90}
    mail_quiet: {kind: recency_days, table: contacts}
    mail_months: {kind: tenure_months, table: contacts}
    mail_pace: {kind: frequency_per_month, table: contacts}
    tier: {kind: column, table: customers, column: tier}
    age: {kind: column, table: customers, column: age}
    months:""",
)

MARCH = 2  # the window's place: the snapshot is at 2024-04-01
LOOKED_AT = pd.Timestamp("2024-01-01", tz="UTC")  # the start of the window into which 90 days reach back from there


def built(
    contract: Contract, rows: pd.DataFrame, window: Window | None = None, threads: int = 2, **tables: pd.DataFrame
) -> pd.DataFrame:
    with engine(contract) as con:
        con.execute(f"SET threads = {threads}")
        validated(con, contract.main_table, rows if contract.snapshots else in_windows(contract, rows))
        for name, frame in tables.items():
            validated(con, name, frame)
        chosen = window or all_windows(contract)[MARCH]
        return features.build(con, contract, chosen).df().set_index(contract.customer.name).sort_index()


def in_windows(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the key of the window in which they lie, as the validated tables have it."""
    known = all_windows(contract)
    times = pd.to_datetime(rows[str(contract.tables.items()["transactions"].time_column)], utc=True)
    starts = pd.DatetimeIndex([window.start for window in known])
    places = starts.searchsorted(times, side="right") - 1
    return rows.assign(_window=[known[place].key for place in places])


def in_days(later: pd.Timestamp, earlier: pd.Timestamp) -> float:
    return (later - earlier) / timedelta(days=1)


def mean_gap(times: list[pd.Timestamp]) -> float:
    ordered = sorted(times)
    gaps = [in_days(after, before) for before, after in pairwise(ordered)]
    return sum(gaps) / len(gaps) if gaps else math.nan


def mean(values: list[float]) -> float:
    known = [value for value in values if not pd.isna(value)]
    return sum(known) / len(known) if known else math.nan


def begun(lines: pd.DataFrame) -> int:
    """How many orders a customer began: a number that comes back in a window beyond 90 days is another order."""
    number = 0
    for _, part in lines.groupby("receipt"):
        months = sorted({time.tz_localize(None).to_period("M") for time in part["bought_at"]})
        reach = [(month.end_time - timedelta(days=90)).to_period("M") for month in months]
        number += 1 + sum(before < since for before, since in zip(months, reach[1:], strict=False))
    return number


def plainly(at: pd.Timestamp, rows: pd.DataFrame, contacts: pd.DataFrame, customers: pd.DataFrame) -> pd.DataFrame:
    """The features again, customer by customer, as one would explain them."""
    found = {}
    for customer, all_lines in rows.groupby("client_no"):
        lines = all_lines[all_lines["bought_at"] < at]
        if lines.empty:
            continue
        near = lines[lines["bought_at"] >= LOOKED_AT]
        orders = [(part["bought_at"].min(), part["paid"].sum()) for _, part in near.groupby("receipt")]

        def since(n: int, orders: list[Any] = orders) -> list[Any]:
            return [order for order in orders if order[0] >= at - timedelta(days=n)]

        recent_lines = lines[lines["bought_at"] >= at - timedelta(days=90)]
        first, last = lines["bought_at"].min(), lines["bought_at"].max()
        months = in_days(at, first) / 30.4375
        mails = contacts[(contacts["client_no"] == customer) & (contacts["sent_at"] < at)]
        mails90 = mails[mails["sent_at"] >= at - timedelta(days=90)]
        mail_months = in_days(at, mails["sent_at"].min()) / 30.4375 if len(mails) else math.nan
        known = customers[customers["client_no"] == customer]
        found[customer] = {
            "visits_30d": len(since(30)),
            "spent_90d": sum(paid for _, paid in since(90)),
            "basket_90d": mean([paid for _, paid in since(90)]),
            "largest_90d": max((paid for _, paid in since(90)), default=math.nan),
            "shops_90d": recent_lines["shop"].dropna().nunique(),
            "quiet_days": in_days(at, last),
            "gap_90d": mean_gap([time for time, _ in since(90)]),
            "largest_line_90d": recent_lines["paid"].max(),
            "mean_line_90d": mean(recent_lines["paid"].tolist()),
            "mails_30d": (mails["sent_at"] >= at - timedelta(days=30)).sum(),
            "channels_90d": mails90["channel"].dropna().nunique(),
            "cost_90d": mails90["cost"].sum(),
            "mean_cost_90d": mean(mails90["cost"].tolist()),
            "mail_gap_90d": mean_gap(mails90["sent_at"].tolist()),
            "mail_quiet": in_days(at, mails["sent_at"].max()) if len(mails) else math.nan,
            "mail_months": mail_months,
            "mail_pace": len(mails) / max(mail_months, 1.0) if len(mails) else math.nan,
            "tier": known["tier"].iloc[0] if len(known) else None,
            "age": known["age"].iloc[0] if len(known) else math.nan,
            "months": months,
            "pace": begun(lines) / max(months, 1.0),
            "_at_risk": last >= at - timedelta(days=60),
        }
    return pd.DataFrame.from_dict(found, orient="index")


def mailings(seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = 60
    return pd.DataFrame(
        {
            "client_no": [f"c{n}" for n in random.integers(0, 9, rows)],
            "sent_at": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(random.integers(0, 180, rows), unit="D"),
            "channel": random.choice(np.array(["mail", "call", None], dtype=object), rows),
            "cost": random.choice([1.5, 2.25, np.nan], rows),
        }
    )


def people(key: str = "2024-03-01") -> pd.DataFrame:
    return pd.DataFrame(
        {"client_no": ["c0", "c1", "c99"], "tier": ["gold", None, "tin"], "age": [31.0, np.nan, 50.0], "_window": key}
    )


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    left, right = left.sort_index(), right.sort_index()
    assert left.index.tolist() == right.index.tolist()
    for name in right.columns:
        if name in ("tier", "_at_risk"):
            plain = [[None if pd.isna(value) else value for value in frame[name]] for frame in (left, right)]
            assert plain[0] == plain[1], name
        else:
            np.testing.assert_allclose(left[name].astype(float), right[name].astype(float), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("seed", range(6))
def test_every_kind_is_what_a_plain_reading_of_it_says(seed: int) -> None:
    contract = changed(RICH)
    rows, contacts = purchases(seed), mailings(seed)
    at = all_windows(contract)[MARCH].end
    edge = pd.DataFrame(
        [
            ("at T", "e1", at, 1.0, "north"),
            ("just before T", "e2", at - timedelta(microseconds=1), 2.0, None),
            ("at T - window", "e3", at - timedelta(days=30), 4.0, "north"),
            ("twice at once", "e4", at - timedelta(days=3), 8.0, "x"),
            ("twice at once", "e5", at - timedelta(days=3), 8.0, "x"),
            ("at T - 60", "e6", at - timedelta(days=60), 1.0, "x"),
            ("long ago", "e7", at - timedelta(days=60, microseconds=1), 1.0, "x"),
            ("across T", "e8", at - timedelta(hours=1), 1.0, "x"),
            ("across T", "e8", at + timedelta(hours=1), 100.0, "y"),
        ],
        columns=["client_no", "receipt", "bought_at", "paid", "shop"],
    )
    rows = pd.concat([rows, edge], ignore_index=True)
    found = built(contract, rows, contacts=contacts, customers=people())
    same(found.drop(columns=["snapshot_time", *features.STATE]), plainly(pd.Timestamp(at), rows, contacts, people()))
    assert (found["snapshot_time"] == at).all()
    assert list(found.columns) == ["snapshot_time", *contract.feature_names, "_at_risk", *features.STATE]


def test_what_happens_at_or_after_the_time_changes_nothing() -> None:
    contract = changed(RICH)
    at = all_windows(contract)[MARCH].end
    rows, contacts = purchases(1), mailings(1)
    before = built(
        contract, rows[rows["bought_at"] < at], contacts=contacts[contacts["sent_at"] < at], customers=people()
    )
    later = rows.assign(bought_at=at, paid=999.0, receipt="late" + rows["receipt"])
    mails_later = contacts.assign(sent_at=at, cost=999.0)
    after = built(contract, pd.concat([rows, later]), contacts=pd.concat([contacts, mails_later]), customers=people())
    pd.testing.assert_frame_equal(before, after, check_exact=True)


def test_features_are_the_same_to_the_last_bit_whatever_the_order_and_the_threads() -> None:
    contract = changed(RICH)
    rows = purchases(3, customers=40, rows=30_000).assign(paid=lambda f: f["paid"] / 7)
    contacts = mailings(3)
    first = built(contract, rows, threads=1, contacts=contacts, customers=people())
    for seed in (1, 2):
        shuffled = rows.sample(frac=1, random_state=seed)
        again = built(
            contract, shuffled, threads=4, contacts=contacts.sample(frac=1, random_state=seed), customers=people()
        )
        pd.testing.assert_frame_equal(first, again, check_exact=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["with orders", "without"])
def test_from_the_snapshot_before_come_the_same_features_as_from_all_of_history(seed: int, order: str) -> None:
    contract = changed(RICH, *([("    order: receipt\n", "")] if order == "without" else []))
    # three years: far more than any feature looks back, with orders that come back after it
    contract = contract.model_copy(update={"time": contract.time.model_copy(update={"end": date(2027, 1, 1)})})
    rows = in_windows(contract, purchases(seed, customers=9, rows=300, days=600))
    rows["receipt"] = rows["client_no"] + (np.arange(len(rows)) % 70).astype(str)
    with engine(contract) as con:
        validated(con, "contacts", mailings(seed))
        validated(con, "customers", pd.concat([people(window.key) for window in all_windows(contract)]))
        previous = None
        for window in all_windows(contract)[:20]:
            validated(con, "transactions", rows[rows["_window"] <= window.key])
            cold = features.build(con, contract, window).order("1").df()
            needed = inputs.needed_for_features(contract, window, previous is not None)["transactions"]
            validated(con, "transactions", rows[rows["_window"].isin(needed)])
            warm = features.build(con, contract, window, previous).order("1")
            pd.testing.assert_frame_equal(warm.df(), cold, check_exact=True)
            con.execute("CREATE OR REPLACE TEMP TABLE handed_on AS SELECT * FROM warm")
            previous = "handed_on"
        assert len(needed) < 5  # 90 days and the window itself
        assert cold["pace"].notna().all()


def test_missing_amounts_count_as_visits_but_not_as_amounts() -> None:
    contract = changed(PURCHASES, ("paid: {type: float, min: 0}", "paid: {type: float, nullable: true}"))
    at = all_windows(contract)[MARCH].end - timedelta(days=2)
    rows = pd.DataFrame({"client_no": "c", "receipt": ["1", "2"], "bought_at": at, "paid": [10.0, None], "shop": "x"})
    row = built(contract, rows).loc["c"]
    assert (row["visits_30d"], row["spent_90d"], row["basket_90d"]) == (2, 10, 10)


@pytest.mark.parametrize(
    "names", [("last", "first", "orders"), ("customer", "time", "amount"), ("_", "select", "rows_of_contacts")[1:]]
)
def test_features_may_have_any_name(names: tuple[str, ...]) -> None:
    text = PURCHASES
    for name, old in zip(names, ("visits_30d", "spent_90d", "quiet_days"), strict=False):
        text = text.replace(f"{old}:", f"{name}:")
    plain, renamed = built(changed(PURCHASES), purchases(4)), built(changed(text), purchases(4))
    for name, old in zip(names, ("visits_30d", "spent_90d", "quiet_days"), strict=False):
        assert renamed[name].tolist() == plain[old].tolist()


def test_a_table_may_have_columns_that_are_called_like_parts_of_the_query() -> None:
    text = (
        PURCHASES.replace("client_no", "buyer")
        .replace("shop: {", "customer: {")
        .replace("column: shop", "column: customer")
    )
    text = text.replace("paid", "time").replace("bought_at", "amount").replace("receipt", "_orders"[1:])
    rows = purchases(5)
    renamed = rows.rename(
        columns={"client_no": "buyer", "shop": "customer", "paid": "time", "bought_at": "amount", "receipt": "orders"}
    )
    pd.testing.assert_frame_equal(built(changed(text), renamed), built(changed(PURCHASES), rows))


def test_customers_may_be_numbers() -> None:
    contract = changed(
        PURCHASES,
        ("type: string}\ntime", "type: integer}\ntime"),
        ("client_no: {type: string}", "client_no: {type: integer}"),
    )
    rows = purchases(6)
    numbered = rows.assign(client_no=rows["client_no"].str[1:].astype("int64"))
    found = built(contract, numbered)
    assert found.index.dtype == "int64"
    plain = built(changed(PURCHASES), rows)
    assert (
        found["spent_90d"].sort_index().tolist()
        == plain["spent_90d"].rename(lambda c: int(c[1:])).sort_index().tolist()
    )


def test_attributes_with_a_time_are_as_they_stood_then() -> None:
    timeless = "customer: client_no\n    columns:\n      client_no: {type: string}\n      tier"
    timed = timeless.replace("columns:\n", "time: since\n    columns:\n      since: {type: timestamp}\n")
    contract = changed(RICH, (timeless, timed))
    at = all_windows(contract)[MARCH].end
    known = pd.DataFrame(
        [
            ("c0", at - timedelta(days=9), "old", 30.0),
            ("c0", at - timedelta(days=1), "new", 31.0),
            ("c0", at, "future", 32.0),
            ("c1", at + timedelta(days=1), "future", 1.0),
        ],
        columns=["client_no", "since", "tier", "age"],
    )
    found = built(contract, purchases(7), contacts=mailings(7), customers=known)
    assert (found.loc["c0", "tier"], found.loc["c0", "age"]) == ("new", 31)
    assert pd.isna(found.loc["c1", "tier"])


def test_attributes_without_a_time_are_those_that_came_with_the_window() -> None:
    both = pd.concat([people("2024-02-01").assign(tier="before"), people("2024-03-01")])
    found = built(changed(RICH), purchases(8), contacts=mailings(8), customers=both)
    assert found.loc["c0", "tier"] == "gold"


BERLIN = ("timezone: UTC", "timezone: Europe/Berlin")


def test_a_day_without_a_time_is_local_midnight_whatever_zone_the_connection_thinks_in() -> None:
    contract = changed(PURCHASES, BERLIN, ("bought_at: {type: timestamp}", "bought_at: {type: date}"))
    rows = pd.DataFrame(
        {
            "client_no": ["c"],
            "receipt": ["r"],
            "bought_at": [pd.Timestamp("2024-03-31").date()],
            "paid": [1.0],
            "shop": ["x"],
        }
    )
    quiet = []
    for zone in ("UTC", "Europe/Berlin", "Asia/Tokyo"):
        with engine(contract) as con:
            con.execute(f"SET TimeZone = '{zone}'")
            validated(con, "transactions", in_windows(contract, rows))
            quiet.append(features.build(con, contract, all_windows(contract)[MARCH]).df()["quiet_days"].tolist())
    assert quiet == [[23 / 24]] * 3  # the day on which the clocks change


def test_a_window_of_days_counts_calendar_days_of_the_contracts_zone() -> None:
    contract = changed(PURCHASES, BERLIN)
    midnight = as_utc(pd.Timestamp("2024-03-02").to_pydatetime(), contract.zone)  # 30 days before 1 April, local
    rows = pd.DataFrame(
        {
            "client_no": ["in", "out"],
            "receipt": ["1", "2"],
            "bought_at": [midnight, midnight - timedelta(microseconds=1)],
            "paid": 1.0,
            "shop": "x",
        }
    )
    for zone in ("UTC", "Europe/Berlin"):
        with engine(contract) as con:
            con.execute(f"SET TimeZone = '{zone}'")
            validated(con, "transactions", in_windows(contract, rows))
            found = features.build(con, contract, all_windows(contract)[MARCH]).df().set_index("client")["visits_30d"]
        assert found.to_dict() == {"in": 1, "out": 0}


def members(**columns: Any) -> pd.DataFrame:
    base = {
        "member_id": ["m1", "m2"],
        "as_of": instant("2024-03-05"),
        "plan": ["gold", None],
        "visits": [3, None],
        "left": ["Yes", "No"],
        "_window": "2024-03-01",
    }
    return pd.DataFrame({**base, **columns})


def test_a_snapshots_contract_hands_its_columns_through() -> None:
    contract = changed(WIDE)
    found = built(contract, pd.concat([members(), members(_window="2024-02-01")]))
    assert found.index.tolist() == ["m1", "m2"]
    assert list(found.columns) == ["snapshot_time", "plan", "visits", "_at_risk"]
    assert found["visits"].tolist()[0] == 3.0
    assert pd.isna(found["visits"].tolist()[1])
    assert (found["snapshot_time"] == instant("2024-03-05")).all()
    assert found["_at_risk"].all()


def test_a_snapshots_table_without_dates_is_observed_at_the_contracts_date() -> None:
    contract = changed(WIDE, ("time: as_of", "observed_at: 2024-04-01"), BERLIN)
    assert (built(contract, members())["snapshot_time"] == instant("2024-03-31T22:00")).all()


def test_no_purchases_give_no_rows_and_the_same_columns() -> None:
    contract = changed(PURCHASES)
    found = built(contract, purchases(1).head(1), window=all_windows(contract)[0])
    empty = built(contract, purchases(1).assign(bought_at=instant("2024-06-20")), window=all_windows(contract)[0])
    assert len(empty) == 0
    assert list(empty.columns) == list(found.columns)

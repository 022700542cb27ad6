"""The label contract: who is observed, when, what is asked of them, and from when on the answer may be used.

The oracle here is pandas and local calendar days, written without the platform's own arithmetic of time.
"""

from __future__ import annotations

from datetime import date
from itertools import pairwise

import pandas as pd
import pyarrow as pa
import pytest

from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME
from churn_platform.contract import given as present
from churn_platform.ml import inputs, labels, splits
from churn_platform.windows import window
from churn_platform_tests import graph
from churn_platform_tests.worlds import PURCHASES, all_windows, changed, engine, purchases, validated

ZONES = {zone: ("timezone: UTC", f"timezone: {zone}") for zone in ("Europe/Berlin", "America/New_York")}
SHAPES = {
    "as it is": (),
    "with a lead": (("lead_days: 0", "lead_days: 10"),),
    "a horizon of more than a window": (("horizon_days: 28", "horizon_days: 75"), ("lead_days: 0", "lead_days: 3")),
    "few are eligible": (("active_within_days: 60", "active_within_days: 9"),),
    "weeks in New York": (ZONES["America/New_York"], ("monthly", "weekly"), ("horizon_days: 28", "horizon_days: 9")),
    "days in Berlin, across the change of the clocks": (
        ZONES["Europe/Berlin"],
        ("monthly", "daily"),
        ("horizon_days: 28", "horizon_days: 4"),
        ("end: 2024-07-01", "end: 2024-04-12"),
    ),
}


def local_midnight(contract, day: date, plus: int = 0) -> pd.Timestamp:
    """The instant at which a local day begins, some calendar days later."""
    return (pd.Timestamp(day) + pd.Timedelta(days=plus)).tz_localize(contract.time.timezone).tz_convert("UTC")


def ends_of_windows(contract) -> list[date]:
    """The local days on which windows end, by the calendar alone."""
    time = contract.time
    frequency = {"monthly": "MS", "weekly": "7D", "daily": "D"}[time.cadence]
    return [day.date() for day in pd.date_range(time.start, present(time.end), freq=frequency)][1:]


def oracle(contract, rows: pd.DataFrame) -> dict[tuple[str, pd.Timestamp], tuple[int, pd.Timestamp, str]]:
    """Customer and observation to label, maturity, and the key of the window in which the label may first be known."""
    label, days = present(contract.label), ends_of_windows(contract)
    bounds = [contract.time.start, *days]
    found = {}
    for day in days:
        observed = local_midnight(contract, day)
        matured = local_midnight(contract, day, label.lead_days + label.horizon_days)
        known_in = next(
            (
                start.isoformat()
                for start, end in pairwise(bounds)
                if local_midnight(contract, start) < matured <= local_midnight(contract, end)
            ),
            None,
        )
        if observed < local_midnight(contract, contract.time.start, label.warmup_days) or known_in is None:
            continue
        for customer, times in rows.groupby("client_no")["bought_at"]:
            active = (times >= local_midnight(contract, day, -label.active_within_days)) & (times < observed)
            if active.any():
                stayed = (times >= local_midnight(contract, day, label.lead_days)) & (times < matured)
                found[customer, observed] = (int(not stayed.any()), matured, known_in)
    return found


def built(contract, rows: pd.DataFrame) -> pd.DataFrame:
    """The labels of all windows, each from those windows of purchases that the asset would read."""
    parts = []
    starts = [w.start for w in all_windows(contract)]
    rows = rows.assign(
        _window=[all_windows(contract)[pd.Index(starts).searchsorted(t, "right") - 1].key for t in rows["bought_at"]]
    )
    with engine(contract) as con:
        for each in all_windows(contract):
            validated(con, "transactions", rows[rows["_window"].isin(inputs.needed_for_labels(contract, each))])
            parts.append(labels.build(con, contract, each).df().assign(window=each.key))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_are_those_of_an_independent_reading_of_the_contract(shape):
    contract = changed(PURCHASES, *SHAPES[shape])
    last = local_midnight(contract, present(contract.time.end))
    rows = purchases(7, customers=25, rows=320)
    rows = rows[(rows["bought_at"] < last) & (rows["bought_at"] >= local_midnight(contract, contract.time.start))]
    found = built(contract, rows)
    wanted = oracle(contract, rows)
    assert len(found) == len(wanted) > 40
    as_found = {
        (row.client, row.snapshot_time): (row.churned, row.label_matured_at, row.window) for row in found.itertuples()
    }
    assert as_found == wanted
    assert 0 < found["churned"].mean() < 1


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_label_never_stands_in_a_window_that_ends_before_it_is_mature(shape):
    contract = changed(PURCHASES, *SHAPES[shape])
    found = built(contract, purchases(8, customers=25, rows=320))
    ends = {each.key: each.end for each in all_windows(contract)}
    assert (found["label_matured_at"] <= found["window"].map(ends)).all()
    assert (found["label_matured_at"] > found["snapshot_time"]).all()


@pytest.mark.usefixtures("home")
def test_a_label_that_matures_a_day_after_the_window_waits_for_the_next():
    """March has 31 days: a horizon of 31 is over on its last midnight, one of 32 is over a day too late."""
    for days, known_in in ((31, "2024-03-01"), (32, "2024-04-01")):
        contract = changed(PURCHASES, ("horizon_days: 28", f"horizon_days: {days}"))
        found = built(contract, purchases(9, customers=20, rows=400))
        march = found[found["snapshot_time"] == pd.Timestamp("2024-03-01", tz="UTC")]
        assert set(march["window"]) == {known_in}


# ------------------------------------------------------------------------------------------- on the real assets


@pytest.fixture(scope="module")
def shop():
    """A played platform, to look at."""
    with pytest.MonkeyPatch.context() as patch:
        yield graph.played().use(patch)
    graph.forget()


def test_every_training_row_carries_its_observation_and_was_mature_when_it_was_made(shop):
    rows = shop.rows("training_set")
    newest = window(shop.contract, shop.tables.windows("churn_labels")[-1]).end
    label = present(shop.contract.label)
    assert rows[[SNAPSHOT_TIME, MATURED_AT, LABEL]].notna().all(axis=None)
    assert (rows[MATURED_AT] <= newest).all()
    assert (rows[MATURED_AT] - rows[SNAPSHOT_TIME] == pd.Timedelta(days=label.lead_days + label.horizon_days)).all()
    assert not rows.duplicated(["buyer", SNAPSHOT_TIME]).any()


def test_training_rows_are_the_labels_with_the_features_of_their_observation_and_no_other(shop):
    """Joined again by hand, on the very instant; a neighbour's features would have been noticed."""
    rows = shop.rows("training_set")
    features = shop.rows("customer_features")
    names = shop.contract.feature_names
    known = shop.rows("churn_labels")
    assert len(rows) > 300
    made_of = known.merge(rows, on=["buyer", SNAPSHOT_TIME, LABEL, MATURED_AT], how="inner")
    assert len(made_of) == len(rows)
    again = rows[["buyer", SNAPSHOT_TIME]].merge(features, on=["buyer", SNAPSHOT_TIME], how="left", validate="1:1")
    pd.testing.assert_frame_equal(rows[names], again[names], check_exact=True)
    shifted = features.assign(**{SNAPSHOT_TIME: features[SNAPSHOT_TIME] + pd.offsets.MonthBegin()})
    other = rows[["buyer", SNAPSHOT_TIME]].merge(shifted, on=["buyer", SNAPSHOT_TIME], how="left")
    assert (other["recency_days"] != rows["recency_days"]).mean() > 0.9


def test_only_who_bought_lately_is_labelled_and_everybody_is_observed(shop):
    rows, features = shop.rows("training_set"), shop.rows("customer_features")
    active = present(shop.contract.label).active_within_days
    assert rows["recency_days"].max() <= active
    quiet = features[features["recency_days"] > active]
    assert len(quiet) > 20
    assert not quiet["_at_risk"].any()
    assert rows.merge(quiet, on=["buyer", SNAPSHOT_TIME]).empty


def test_parts_of_the_training_set_share_no_horizon(shop):
    """What a part is judged on begins only after all that was learnt before it was known."""
    for contract in (shop.contract, shop.other(("horizon_days: 28", "lead_days: 7, horizon_days: 28")).contract):
        rows = graph.labelled(rows=60, months=9)
        wait = present(contract.label).lead_days + present(contract.label).horizon_days
        rows[MATURED_AT] = rows[SNAPSHOT_TIME] + pd.Timedelta(days=wait)
        divided = splits.split(contract, rows)
        for before, after in ((divided.train, divided.validation), (divided.validation, divided.test)):
            assert before[MATURED_AT].max() <= after[SNAPSHOT_TIME].min()
        kept = len(divided.train) + len(divided.validation) + len(divided.test)
        assert kept + divided.left_out == len(rows)
        assert (divided.left_out > 0) == (wait > 31)


def test_a_labelled_window_says_nothing_of_one_that_is_not_over(tmp_path, monkeypatch):
    """Labels of the newest window, asked for before its purchases are there, are refused; nothing is written."""
    shop = graph.played().copy(tmp_path).use(monkeypatch)
    done = shop.tables.windows("churn_labels")
    ahead = next(w.key for w in all_windows(shop.contract) if w.key > done[-1])
    result = shop.materialize("churn_labels", key=ahead)
    assert not result.success
    assert ahead in graph.why(result)
    assert shop.tables.windows("churn_labels") == done


def test_a_label_that_nobody_could_know_yet_is_not_trained_on(tmp_path, monkeypatch):
    shop = graph.played().copy(tmp_path).use(monkeypatch)
    before = shop.tables.version("training_set")
    newest = shop.tables.windows("churn_labels")[-1]
    forged = shop.rows("churn_labels", newest).drop(columns="_window")
    forged[MATURED_AT] = window(shop.contract, newest).end + pd.Timedelta(days=1)
    shop.tables.write("churn_labels", pa.Table.from_pandas(forged, preserve_index=False), newest)
    refused = shop.materialize("training_set")
    assert not refused.success
    assert newest in graph.why(refused)
    assert shop.tables.version("training_set") == before

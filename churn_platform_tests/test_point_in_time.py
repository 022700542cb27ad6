"""Point-in-time correctness: one trap a test. Each trap is shown to be one by the answer that walks into it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_platform.contract import as_utc
from churn_platform.ml import features, inputs
from churn_platform.resources.storage import TableStore
from churn_platform_tests import graph
from churn_platform_tests.worlds import PURCHASES, all_windows, changed, engine, instant, validated

TTL = 40  # days
SNAPSHOTS = pd.date_range("2023-02-01", periods=8, freq="MS", tz="UTC")
CUSTOMERS = 6_000


@cache
def snapshots(seed: int = 1, customers: int = CUSTOMERS) -> pd.DataFrame:
    """Feature rows with holes: a fifth of the categories and a third of the gaps is missing, and so are customers."""
    random = np.random.default_rng(seed)
    parts = []
    for number, at in enumerate(SNAPSHOTS):
        rows = graph.customers(customers, seed + number)
        rows.loc[random.random(customers) < 0.2, "segment"] = None
        rows.insert(0, "buyer", [f"c{n}" for n in range(customers)])
        rows["snapshot_time"] = at
        parts.append(rows[random.random(customers) < 0.7])
    return pd.concat(parts, ignore_index=True)


def platform(folder, patch, rows: pd.DataFrame):
    """A platform whose features table holds these rows."""
    text = graph.SIMULATED.replace("features:\n", f"features:\n  ttl_days: {TTL}\n", 1)
    found = graph.make(folder, text).use(patch)
    found.tables.write("customer_features", pa.Table.from_pandas(rows, preserve_index=False))
    found.store.apply(found.tables.path("customer_features"))
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield platform(tmp_path_factory.mktemp("shop"), patch, snapshots())
    graph.forget()


def asked(rows: int, seed: int = 2) -> pd.DataFrame:
    """Entity rows: on snapshots, a microsecond around them and around the end of the ttl, and anywhere."""
    random = np.random.default_rng(seed)
    tick, end = pd.Timedelta(microseconds=1), pd.Timedelta(days=TTL)
    edges = [time + shift for time in SNAPSHOTS for shift in (-tick, 0 * tick, tick, end - tick, end, end + tick)]
    anywhere = SNAPSHOTS[0] + pd.to_timedelta(random.integers(-40 * 24 * 60, 350 * 24 * 60, rows), unit="m")
    times = np.where(random.random(rows) < 0.5, random.choice(np.array(edges, dtype=object), rows), anywhere)
    found = pd.DataFrame(
        {
            "buyer": [f"c{n}" for n in random.integers(0, CUSTOMERS + 600, rows)],
            "event_timestamp": pd.Series(times, dtype="datetime64[us, UTC]"),
            "churned": random.integers(0, 2, rows),
        }
    )
    return found.drop_duplicates(["buyer", "event_timestamp"], ignore_index=True)


def by_hand(entities: pd.DataFrame, rows: pd.DataFrame, names: list[str], ttl: int = TTL) -> pd.DataFrame:
    """The same join in DuckDB, on plain tables of a connection of its own."""
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("given", entities.assign(place=range(len(entities))))
        con.register("known", rows)
        con.execute("CREATE TABLE e AS SELECT * FROM given")
        con.execute("CREATE TABLE f AS SELECT * FROM known")
        fresh = f"f.snapshot_time >= e.event_timestamp - INTERVAL {ttl} DAY"
        chosen = ", ".join(f"CASE WHEN {fresh} THEN f.{name} END AS {name}" for name in names)
        return con.sql(
            f"SELECT e.buyer, e.event_timestamp, e.churned, {chosen} FROM e ASOF LEFT JOIN f "
            "ON e.buyer = f.buyer AND e.event_timestamp >= f.snapshot_time ORDER BY place"
        ).df()


def differing(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, int]:
    """Column to the number of values that differ, bit for bit; a missing value equals a missing value."""
    found = {}
    for name in right.columns:
        unequal = (left[name].isna() != right[name].isna()) | (left[name].notna() & (left[name] != right[name]))
        found[name] = int(unequal.sum())
    return {name: number for name, number in found.items() if number}


# -------------------------------------------------------------------------------------------- the historical join


def test_a_hundred_thousand_historical_rows_equal_an_independent_as_of_join_value_by_value(shop):
    entities, names = asked(110_000), shop.contract.feature_names
    assert len(entities) >= 100_000
    found = shop.store.historical(entities)
    assert differing(found, by_hand(entities, snapshots(), names)) == {}
    assert list(found.columns) == [*entities.columns, *names]
    known = found["spent_90d"].notna()
    assert 20_000 < known.sum() < len(found) - 20_000
    assert found.loc[known, "segment"].isna().sum() > 5_000
    assert found.loc[known, "gap_90d"].isna().sum() > 5_000
    # a join that is not as of the time, or has no ttl, would not have gone unnoticed
    assert differing(found, by_hand(entities, snapshots(), names, ttl=400))
    newest = snapshots().drop_duplicates("buyer", keep="last").assign(snapshot_time=SNAPSHOTS[0])
    assert differing(found, by_hand(entities, newest, names))


def test_a_value_from_after_the_observation_is_not_given_even_if_it_is_a_microsecond_late(shop):
    rows = snapshots()
    first = rows.drop_duplicates("buyer")
    tick = pd.Timedelta(microseconds=1)
    for shift, known in ((-tick, False), (0 * tick, True)):
        entities = pd.DataFrame({"buyer": first["buyer"], "event_timestamp": first["snapshot_time"] + shift})
        found = shop.store.historical(entities.reset_index(drop=True))
        assert found["recency_days"].notna().all() == found["recency_days"].notna().any() == known


def test_who_was_quiet_for_longer_than_the_ttl_stays_in_and_only_the_values_are_missing(shop):
    last = snapshots().drop_duplicates("buyer", keep="last").head(500)
    length = pd.Timedelta(days=TTL)
    for shift, known in ((length, 1.0), (length + pd.Timedelta(microseconds=1), 0.0), (10 * length, 0.0)):
        entities = pd.DataFrame(
            {"buyer": last["buyer"], "event_timestamp": last["snapshot_time"] + shift, "churned": 1}
        )
        entities = entities.reset_index(drop=True)
        found = shop.store.historical(entities)
        pd.testing.assert_frame_equal(found[["buyer", "churned"]], entities[["buyer", "churned"]])
        assert found["recency_days"].notna().mean() == known
    # the trap: a ttl that is a condition on rows, not on values, loses exactly these customers
    with duckdb.connect() as con:
        con.register("e", entities)
        con.register("f", last)
        kept = con.sql(
            f"SELECT e.* FROM e JOIN f USING (buyer) WHERE f.snapshot_time >= e.event_timestamp - INTERVAL {TTL} DAY"
        ).fetchall()
    assert kept == []


def test_customers_who_were_never_seen_stay_in_with_nothing_known_of_them(shop):
    entities = pd.DataFrame(
        {"buyer": ["nobody", "c1", "", "C1"], "event_timestamp": SNAPSHOTS[-1], "churned": [1, 0, 1, 0]}
    )
    found = shop.store.historical(entities)
    assert found["buyer"].tolist() == ["nobody", "c1", "", "C1"]
    known = found[shop.contract.feature_names].notna().any(axis=1).tolist()
    assert known == [False, by_hand(entities, snapshots(), ["age"])["age"].notna()[1], False, False]


TIMES = st.datetimes(datetime(2022, 12, 1), datetime(2024, 1, 1))  # noqa: DTZ001 - made UTC below


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, CUSTOMERS + 200), st.one_of(st.sampled_from(list(SNAPSHOTS)), TIMES), st.booleans()),
        max_size=60,
    )
)
def test_rows_in_are_rows_out_in_the_same_order_whoever_is_asked_for_and_whenever(shop, rows):
    entities = pd.DataFrame(
        {
            "buyer": pd.Series([f"c{number}" for number, _, _ in rows], dtype=object),
            "event_timestamp": pd.Series(
                [pd.Timestamp(time).tz_localize("UTC") if time.tzinfo is None else time for _, time, _ in rows],
                dtype="datetime64[us, UTC]",
            ),
            "churned": pd.Series([int(churned) for _, _, churned in rows], dtype="int64"),
        }
    ).drop_duplicates(["buyer", "event_timestamp"], ignore_index=True)
    found = shop.store.historical(entities)
    pd.testing.assert_frame_equal(found[list(entities.columns)], entities)
    if len(entities):
        assert differing(found, by_hand(entities, snapshots(), shop.contract.feature_names)) == {}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_the_zone_in_which_a_time_is_written_changes_nothing(shop, zone):
    """Around both changes of the clocks, where local times repeat and local days have 23 and 25 hours."""
    hours = pd.date_range("2023-03-24", "2023-03-28", freq="h", tz="UTC")
    entities = pd.DataFrame({"buyer": [f"c{n}" for n in range(len(hours))], "event_timestamp": hours})
    wanted = shop.store.historical(entities)
    local = entities.assign(event_timestamp=hours.tz_convert(zone))
    found = shop.store.feast.get_historical_features(entity_df=local, features=shop.store.references).to_df()
    assert (found["event_timestamp"] == wanted["event_timestamp"]).all()
    assert differing(found, wanted[shop.contract.feature_names]) == {}
    # the trap: the same digits on the clock, taken for UTC, are another time
    naive = entities.assign(event_timestamp=hours.tz_convert(zone).tz_localize(None).tz_localize("UTC"))
    assert (naive["event_timestamp"] != wanted["event_timestamp"]).all()


def test_of_rows_with_equal_times_the_same_one_is_given_however_they_were_written(tmp_path, monkeypatch):
    """Without a `created` time: the first in the order of the features, missing values last."""
    base = snapshots(customers=50)
    base = base[base["snapshot_time"] == SNAPSHOTS[0]]
    twins = pd.concat([base, base.assign(purchases_30d=base["purchases_30d"] + 1, segment="premium")])
    answers = []
    for number in range(3):
        rows = twins.sample(frac=1, random_state=number)
        found = platform(tmp_path / str(number), monkeypatch, rows)
        entities = pd.DataFrame({"buyer": base["buyer"].tolist(), "event_timestamp": SNAPSHOTS[0], "churned": 0})
        answers.append(found.store.historical(entities))
    for answer in answers:
        pd.testing.assert_frame_equal(answer, answers[0])
        assert answer["purchases_30d"].tolist() == base["purchases_30d"].tolist()


@pytest.mark.parametrize("only_known_then", [False, True])
def test_of_rows_with_equal_times_the_one_created_last_is_given(tmp_path, monkeypatch, only_known_then):
    """And, where Feast is asked to, only of those that had been created by the time of the observation."""
    from feast import FeatureView, Field, FileSource
    from feast.data_format import DeltaFormat
    from feast.types import Float64

    from churn_platform.resources.offline_store import DeltaOfflineStore

    shop = platform(tmp_path, monkeypatch, snapshots(customers=5))
    at = SNAPSHOTS[0]
    corrected = pd.DataFrame({"buyer": "c1", "snapshot_time": at, "value": [1.0, 2.0]})
    corrected["made"] = [at, at + pd.Timedelta(days=3)]
    shop.tables.write("corrected", pa.Table.from_pandas(corrected[::-1], preserve_index=False))
    source = FileSource(
        path=shop.tables.path("corrected"),
        timestamp_field="snapshot_time",
        created_timestamp_column="made",
        file_format=DeltaFormat(),
    )
    view = FeatureView(
        name="corrected",
        entities=[shop.store.definitions.entity(shop.contract)],
        schema=[Field(name="value", dtype=Float64)],
        source=source,
        ttl=timedelta(days=TTL),
    )
    shop.store.feast.apply([view])
    entities = pd.DataFrame({"buyer": "c1", "event_timestamp": [at + timedelta(days=1), at + timedelta(days=5)]})
    job = DeltaOfflineStore.get_historical_features(
        config=shop.store.feast.config,
        feature_views=[shop.store.feast.get_feature_view("corrected")],
        feature_refs=["corrected:value"],
        entity_df=entities,
        registry=shop.store.feast.registry,
        project=shop.contract.name,
        full_feature_names=False,
        filter_by_created_timestamp=only_known_then,
    )
    found = job.to_df().sort_values("event_timestamp")["value"].tolist()
    assert found == ([1.0, 2.0] if only_known_then else [2.0, 2.0])


# ------------------------------------------------------------------------------------- the features that it joins


def shopping(contract, *rows: tuple[str, str, float], **columns) -> pd.DataFrame:
    """Purchases: customer, local time, amount; each in the window in which it became known."""
    frame = pd.DataFrame(rows, columns=["client_no", "bought_at", "paid"])
    frame["bought_at"] = (
        pd.to_datetime(frame["bought_at"], format="ISO8601").dt.tz_localize(contract.zone).dt.tz_convert("UTC")
    )
    frame = frame.assign(receipt=[f"r{number}" for number in range(len(frame))], shop="x", **columns)
    known = frame["arrived"] if "arrived" in frame else frame["bought_at"]
    windows = all_windows(contract)
    frame["_window"] = [next(w.key for w in windows if w.start <= time < w.end) for time in known]
    return frame


def observed(contract, rows: pd.DataFrame, place: int, folder=None) -> pd.DataFrame:
    """The features at the end of a window, computed from the windows that the asset would read."""
    window = all_windows(contract)[place]
    with engine(contract) as con:
        wanted = inputs.needed_for_features(contract, window, from_previous=False)["transactions"]
        validated(con, "transactions", rows[rows["_window"].isin(wanted)])
        return features.build(con, contract, window).df().set_index("client")


@pytest.mark.usefixtures("home")
def test_a_purchase_at_the_very_instant_of_the_observation_belongs_to_the_next():
    contract = changed(PURCHASES)
    rows = shopping(contract, ("a", "2024-03-31 23:59:59.999999", 1), ("a", "2024-04-01 00:00:00", 100))
    march, april = observed(contract, rows, 2), observed(contract, rows, 3)
    assert march.loc["a", "spent_90d"] == 1
    assert april.loc["a", "spent_90d"] == 101


@pytest.mark.usefixtures("home")
def test_who_bought_once_and_never_again_is_in_every_later_snapshot():
    contract = changed(PURCHASES)
    rows = shopping(contract, ("gone", "2024-01-05", 7), ("here", "2024-06-20", 1))
    for place in range(1, 6):
        row = observed(contract, rows, place).loc["gone"]
        assert row["quiet_days"] == (all_windows(contract)[place].end - instant("2024-01-05")) / timedelta(days=1)
        assert row["visits_30d"] == (1 if row["quiet_days"] <= 30 else 0)


@pytest.mark.usefixtures("home")
def test_purchases_at_equal_times_are_all_counted_and_their_order_does_not_matter():
    contract = changed(PURCHASES)
    rows = shopping(contract, *[("a", "2024-03-10 12:00", amount) for amount in (0.1, 0.2, 0.3)])
    first, second = observed(contract, rows, 2), observed(contract, rows[::-1], 2)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert (first.loc["a", "visits_30d"], first.loc["a", "gap_90d"]) == (3, 0)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Berlin", "2024-03-31"),
        ("America/New_York", "2024-03-10"),
    ],
)
def test_thirty_days_are_thirty_days_of_the_calendar_across_a_change_of_the_clocks(zone, day):
    contract = changed(PURCHASES, ("timezone: UTC", f"timezone: {zone}"))
    window = all_windows(contract)[2]
    local = ZoneInfo(zone)
    since = as_utc(datetime(2024, 3, 2), local)  # noqa: DTZ001 - the local midnight 30 days before 1 April
    assert window.end - since == timedelta(days=30) - timedelta(hours=1)  # the clocks changed in between
    assert since < as_utc(datetime.fromisoformat(day), local) < window.end
    rows = shopping(contract, ("in", "2024-03-02 00:00", 1), ("out", "2024-03-01 23:59:59.999999", 1))
    found = observed(contract, rows, 2)["visits_30d"].to_dict()
    assert found == {"in": 1, "out": 0}
    # the trap: 30 times 24 hours before the end, the one of the day before would have been counted
    assert rows["bought_at"].min() >= window.end - timedelta(days=30)


ARRIVES = (
    ("    time: bought_at\n", "    time: bought_at\n    arrived: arrived\n"),
    ("      shop: {", "      arrived: {type: timestamp}\n      shop: {"),
)


@pytest.mark.usefixtures("home")
def test_a_row_that_arrives_late_is_in_no_snapshot_before_its_arrival_and_in_all_after():
    contract = changed(PURCHASES, *ARRIVES)
    rows = shopping(contract, ("a", "2024-02-10", 1), ("a", "2024-02-20", 100))
    late = [instant("2024-02-10"), instant("2024-04-05")]
    rows = shopping(contract, ("a", "2024-02-10", 1), ("a", "2024-02-20", 100), arrived=late)
    spent = [observed(contract, rows, place).loc["a", "spent_90d"] for place in (1, 2, 3)]
    assert spent == [1, 1, 101]
    # the trap: read by the time of the purchase alone, both snapshots before would know of it
    by_event = rows.assign(_window=["2024-02-01", "2024-02-01"])
    assert [observed(contract, by_event, place).loc["a", "spent_90d"] for place in (1, 2)] == [101, 101]


@pytest.mark.usefixtures("home")
def test_a_late_row_enters_through_the_snapshot_before_as_it_does_from_all_rows(tmp_path):
    """Computed from the previous snapshot's state, it counts as if all rows were read again."""
    contract = changed(PURCHASES, *ARRIVES)
    late = [instant("2024-02-10"), instant("2024-04-05"), instant("2024-04-06")]
    rows = shopping(contract, ("a", "2024-02-10", 1), ("a", "2024-01-20", 100), ("b", "2024-01-02", 5), arrived=late)
    whole = observed(contract, rows, 3)
    tables = TableStore(str(tmp_path / "tables"))
    before, window = all_windows(contract)[2:4]
    with engine(contract) as con:
        validated(con, "transactions", rows[rows["_window"] <= before.key])
        tables.write("customer_features", features.build(con, contract, before), before.key)
        validated(con, "transactions", rows[rows["_window"] <= window.key])
        view = tables.read(con, "customer_features", [before.key], view="previous")
        step = features.build(con, contract, window, view).df().set_index("client")
    pd.testing.assert_frame_equal(step.sort_index(), whole.sort_index(), check_exact=True)
    assert set(whole.index) == {"a", "b"}
    assert whole.loc["a", "months"] > (window.end - datetime(2024, 1, 21, tzinfo=UTC)) / timedelta(days=30.4375)

"""The feature store: rows in = rows out, values as of then, and nothing from after."""

from __future__ import annotations

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_platform.engine import connection
from churn_platform.resources.feature_store import FeatureStoreError
from churn_platform.resources.online_writer import Written
from churn_platform_tests import graph

TTL = 40
SNAPSHOTS = pd.date_range("2023-02-01", periods=5, freq="MS", tz="UTC")


def feature_rows(contract, seed: int, customers: int = 40) -> pd.DataFrame:
    """Snapshots of customers, with holes: a customer is not in every one of them."""
    random = np.random.default_rng(seed)
    parts = []
    for number, at in enumerate(SNAPSHOTS):
        rows = graph.customers(customers, seed + number)
        rows.loc[random.random(customers) < 0.2, "segment"] = None
        rows.insert(0, "buyer", [f"c{n}" for n in range(customers)])
        rows["snapshot_time"] = at
        parts.append(rows[random.random(customers) < 0.6])
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    text = graph.SIMULATED.replace("features:\n", f"features:\n  ttl_days: {TTL}\n", 1)
    with pytest.MonkeyPatch.context() as patch:
        found = graph.make(folder, text).use(patch)
        rows = feature_rows(found.contract, 1)
        found.tables.write("customer_features", pa.Table.from_pandas(rows, preserve_index=False))
        found.store.apply(found.tables.path("customer_features"))
        yield found
    graph.forget()


def asked(seed: int, rows: int = 300) -> pd.DataFrame:
    """Customers, some unknown, at random times: on snapshots, between, before all and long after."""
    random = np.random.default_rng(seed)
    times = [*SNAPSHOTS, *(SNAPSHOTS + pd.Timedelta(days=TTL)), *(SNAPSHOTS + pd.Timedelta(days=TTL, microseconds=1))]
    times += [SNAPSHOTS[0] + pd.Timedelta(hours=int(n)) for n in random.integers(-500, 6000, 100)]
    found = pd.DataFrame(
        {
            "buyer": [f"c{n}" for n in random.integers(0, 50, rows)],
            "event_timestamp": pd.Series(
                random.choice(np.array(times, dtype=object), rows), dtype="datetime64[us, UTC]"
            ),
            "churned": random.integers(0, 2, rows),
        }
    )
    return found.drop_duplicates(["buyer", "event_timestamp"], ignore_index=True)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_values_equal_a_hand_written_as_of_join(shop, seed):
    entities = asked(seed)
    found = shop.store.historical(entities)
    features, names = feature_rows(shop.contract, 1), shop.contract.feature_names
    con = duckdb.connect()
    con.register("entities", entities.assign(place=range(len(entities))))
    con.register("features", features)
    chosen = ", ".join(
        f"CASE WHEN f.snapshot_time >= e.event_timestamp - INTERVAL {TTL} DAY THEN f.{name} END AS {name}"
        for name in names
    )
    wanted = con.sql(
        f"SELECT e.buyer, e.event_timestamp, e.churned, {chosen} FROM entities e ASOF LEFT JOIN features f "
        "ON e.buyer = f.buyer AND e.event_timestamp >= f.snapshot_time ORDER BY place"
    ).df()
    assert list(found.columns) == list(wanted.columns)
    assert found["buyer"].tolist() == entities["buyer"].tolist()
    assert (found["event_timestamp"] == entities["event_timestamp"]).all()
    for name in names:
        left, right = found[name], wanted[name]
        assert (left.isna() == right.isna()).all(), name
        assert left.dropna().tolist() == right.dropna().tolist(), name
    known = found["spent_90d"].notna()
    assert 50 < known.sum() < len(found) - 50  # the case is worth the name


def test_no_row_is_lost_not_even_of_who_is_unknown_or_has_been_quiet_for_long(shop):
    late = SNAPSHOTS[-1] + pd.Timedelta(days=400)
    entities = pd.DataFrame(
        {
            "buyer": ["nobody", "c1", "c1", "c2"],
            "event_timestamp": [SNAPSHOTS[-1], SNAPSHOTS[0] - pd.Timedelta(days=1), late, late],
            "churned": [1, 0, 1, 0],
        }
    )
    found = shop.store.historical(entities)
    assert found[["buyer", "churned"]].to_numpy().tolist() == [["nobody", 1], ["c1", 0], ["c1", 1], ["c2", 0]]
    assert found[shop.contract.feature_names].isna().all(axis=None)


def test_a_value_from_after_the_time_asked_for_is_never_given(shop):
    features = feature_rows(shop.contract, 1)
    first = features.sort_values("snapshot_time").drop_duplicates("buyer")
    before = pd.DataFrame(
        {"buyer": first["buyer"], "event_timestamp": first["snapshot_time"] - pd.Timedelta(microseconds=1)}
    )
    found = shop.store.historical(before.reset_index(drop=True))
    assert found["recency_days"].isna().all()


def test_the_same_customer_and_time_asked_for_twice_is_refused(shop):
    twice = pd.concat([asked(1, 5)] * 2, ignore_index=True)
    with pytest.raises(FeatureStoreError, match="asked for twice"):
        shop.store.historical(twice)


@pytest.mark.parametrize("change", ["a row less", "a row twice"])
def test_an_answer_with_other_rows_than_were_asked_for_is_refused(shop, monkeypatch, change):
    store, entities = shop.store, asked(1, 20)
    honest = store.feast.get_historical_features

    class Answer:
        def __init__(self, frame):
            self.frame = frame

        def to_df(self):
            return self.frame

    def dishonest(**arguments):
        frame = honest(**arguments).to_df()
        return Answer(frame[1:] if change == "a row less" else pd.concat([frame, frame[:1]]))

    monkeypatch.setattr(store.feast, "get_historical_features", dishonest)
    with pytest.raises((FeatureStoreError, pd.errors.MergeError)):
        store.historical(entities)


def test_online_serves_the_newest_values_with_their_time_and_none_for_the_unknown(shop):
    store = shop.store
    with connection() as con:
        store.materialize(con, shop.tables.read(con, "customer_features"))
    features = feature_rows(shop.contract, 1)
    newest = features.sort_values("snapshot_time").drop_duplicates("buyer", keep="last").set_index("buyer")
    asked_for = ["nobody", *newest.index, "c-1"]
    answers = dict(zip(asked_for, store.online(asked_for), strict=True))
    assert answers.pop("nobody") is None
    assert answers.pop("c-1") is None
    for buyer, answer in answers.items():
        row = newest.loc[buyer]
        assert answer["snapshot_time"] == row["snapshot_time"]
        for name in shop.contract.feature_names:
            assert answer[name] == row[name] or (answer[name] is None and pd.isna(row[name])), (buyer, name)


def test_online_for_nobody_is_nothing(shop):
    assert shop.store.online([]) == []


def test_a_customer_whose_number_is_an_integer_is_found(tmp_path, monkeypatch):
    gym = graph.make(tmp_path, graph.WIDE).use(monkeypatch)
    rows = pd.DataFrame({"member": [2**60, 7], "plan": ["gold", None], "visits": [3.0, np.nan]})
    rows["snapshot_time"] = SNAPSHOTS[0]
    gym.tables.write("customer_features", pa.Table.from_pandas(rows, preserve_index=False))
    store = gym.store
    store.apply(gym.tables.path("customer_features"))
    found = store.historical(pd.DataFrame({"member": [7, 2**60], "event_timestamp": SNAPSHOTS[0]}))
    assert found["member"].tolist() == [7, 2**60]
    assert found["plan"].tolist()[1] == "gold"
    with connection() as con:
        assert store.materialize(con, gym.tables.read(con, "customer_features")) == Written(written=2)
    online = store.online([2**60, 7, 8])
    assert online[0]["visits"] == 3.0
    assert online[1]["visits"] is None
    assert online[2] is None

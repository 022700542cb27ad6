"""Customer features: computed once per window, offline in a table and online in the feature store."""

from datetime import UTC, datetime

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from churn_platform.assets.common import (
    WRITES,
    column_schema,
    feature_columns,
    history,
    needed_history,
    partitions,
    plot,
    require_window,
    share_known,
)
from churn_platform.contract import FEATURE_KINDS, Contract, Kind
from churn_platform.engine import connection
from churn_platform.ml import features, plots, validation
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore
from churn_platform.windows import window

SAMPLE = 20_000  # rows that a plot of distributions looks at
LOG = "feature_store_log"  # which windows the feature store has taken in


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The features table, and the feature store that it feeds."""
    return [_customer_features(contract), _feature_store(contract)]


def _customer_features(contract: Contract) -> dg.AssetsDefinition:
    upstream = [
        dg.AssetDep(f"validated_{name}", partition_mapping=history(contract) if table.time_column else None)
        for name, table in contract.tables.items().items()
    ]

    @dg.asset(
        deps=upstream,
        partitions_def=partitions(contract),
        group_name="features",
        kinds={"duckdb", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(feature_columns(contract))},
        description="Every customer's features at the end of the window, from rows before it only. One row per "
        "customer who ever bought; the point-in-time record from which models are trained.",
    )
    def customer_features(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore]
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        with connection() as con:
            for name, table in contract.tables.items().items():
                there = tables.windows(f"validated_{name}")
                keys = [key]
                if table.time_column is not None and contract.snapshots is None:
                    keys = needed_history(contract, key, there, f"validated_{name}")
                require_window(key, there, f"validated_{name}")
                tables.read(con, f"validated_{name}", keys)
            version = tables.write("customer_features", features.build(con, contract, window(contract, key)), key)
            tables.read(con, "customer_features", [key])
            rows, at_risk = con.execute(
                f"SELECT count(*), count(*) FILTER ({features.AT_RISK}) FROM customer_features"
            ).fetchall()[0]
            numbers = [*contract.numeric_features, contract.customer.name]
            looked_at = validation.sample(con, "customer_features", numbers, SAMPLE)
            preview = con.sql("SELECT * EXCLUDE (_window) FROM customer_features LIMIT 5").df()
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": rows,
                "dagster/column_lineage": _lineage(contract),
                "at_risk": at_risk,
                "table_version": version,
                "distributions": plot(plots.histograms(_numbers(contract, looked_at), f"features at the end of {key}")),
                "preview": dg.MetadataValue.md(_as_markdown(preview)),
                "path": dg.MetadataValue.path(tables.path("customer_features")),
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return customer_features


def _numbers(contract: Contract, rows: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    return {name: rows[name].to_numpy(dtype="float64") for name in contract.numeric_features}


def _as_markdown(frame: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def _lineage(contract: Contract) -> dg.TableColumnLineage:
    """Which columns each feature is computed from."""
    found: dict[str, list[dg.TableColumnDep]] = {}
    for name, feature in contract.feature_definitions.items():
        table = contract.tables.items()[feature.table]
        columns = [table.customer] if feature.kind is not Kind.column else []
        if table.time_column is not None:
            columns.append(table.time_column)
        if feature.column is not None:
            columns.append(feature.column)
        elif FEATURE_KINDS[feature.kind].takes_column and contract.tables.transactions is not None:
            columns.append(contract.tables.transactions.amount)
        upstream = dg.AssetKey(f"validated_{feature.table}")
        found[name] = [dg.TableColumnDep(upstream, column) for column in columns]
    return dg.TableColumnLineage(found)


def _feature_store(contract: Contract) -> dg.AssetsDefinition:
    @dg.asset(
        deps=["customer_features"],
        partitions_def=partitions(contract),
        group_name="features",
        kinds={"feast", "redis" if _uses_redis() else "sqlite"},
        owners=[contract.owner],
        pool="feature_store",  # Feast's registry wants one writer at a time
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(feature_columns(contract))},
        description="The window's features in Feast: definitions applied, and, when it is the newest window, "
        "brought online for the endpoint.",
    )
    def feature_store(
        context: dg.AssetExecutionContext,
        tables: dg.ResourceParam[TableStore],
        store: dg.ResourceParam[FeatureStore],
    ) -> dg.MaterializeResult[None]:
        chosen = window(contract, context.partition_key)
        require_window(chosen.key, tables.windows("customer_features"), "customer_features")
        applied = store.apply(tables.path("customer_features"))
        newest = tables.windows("customer_features")[-1]
        online = chosen.key == newest
        if online:
            # A snapshots table has its own times within the window; a transactions contract has one, at its end.
            store.materialize_between(chosen.start, chosen.end)
        else:
            context.log.info(
                "window %s is older than %s, which is online: only definitions applied", chosen.key, newest
            )
        entry = {
            "online": online,
            "data_fingerprint": contract.data_fingerprint,
            "feast_objects": ", ".join(applied),
            "at": datetime.now(UTC),
        }
        with connection() as con:
            tables.read(con, "customer_features", [chosen.key])
            known = share_known(con, "customer_features", contract.feature_names)
        tables.write(LOG, pa.Table.from_pylist([entry]), chosen.key)  # last: says that the window is done
        return dg.MaterializeResult(
            metadata={
                "feast_objects": applied,
                "online": online,
                "newest_window": newest,
                "dagster/column_lineage": dg.TableColumnLineage(
                    {name: [dg.TableColumnDep("customer_features", name)] for name in contract.feature_names}
                ),
                "known_values": plot(
                    plots.shares(list(known), list(known.values()), f"features of {chosen.key}", "share known")
                ),
            },
        )

    return feature_store


def _uses_redis() -> bool:
    from churn_platform.settings import settings

    return settings().redis is not None

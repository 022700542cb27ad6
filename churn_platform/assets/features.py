"""Customer features: computed once per window, in a table."""

import dagster as dg
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from churn_platform.assets.common import (
    POOL,
    WRITES,
    Ledger,
    column_schema,
    contents,
    feature_columns,
    history,
    partitions,
    plot,
    require_windows,
)
from churn_platform.contract import FEATURE_KINDS, Contract, Kind
from churn_platform.engine import connection
from churn_platform.ml import features, inputs, plots, validation
from churn_platform.resources.storage import TableStore
from churn_platform.windows import Window, window, windows

SAMPLE = 20_000  # rows that a plot of distributions looks at


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The features table."""
    return [_customer_features(contract)]


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
        pool=POOL,
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(feature_columns(contract))},
        description="Every customer's features at the end of the window, from rows before it only. One row per "
        "customer who ever bought; the point-in-time record from which models are trained.",
    )
    def customer_features(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore]
    ) -> dg.MaterializeResult[None]:
        chosen = window(contract, context.partition_key)
        key, ledger = chosen.key, tables.ledger()
        made_of = inputs.features_made_of(contract, contents(contract, ledger), windows(contract, chosen.end))
        with connection() as con:
            before = _usable_snapshot(contract, chosen, ledger, made_of)
            previous = tables.read(con, "customer_features", [before], view="previous_features") if before else None
            needed = inputs.needed_for_features(contract, chosen, previous is not None)
            for name in contract.tables.items():
                there = tables.windows(f"validated_{name}")
                require_windows(needed[name], there, f"validated_{name}")
                tables.read(con, f"validated_{name}", needed[name])
            built = features.build(con, contract, chosen, previous)
            version = tables.write("customer_features", built, key, made_of=inputs.stamped(contract, made_of[key]))
            tables.read(con, "customer_features", [key])
            rows, at_risk = con.execute(
                f"SELECT count(*), count(*) FILTER ({features.AT_RISK}) FROM customer_features"
            ).fetchall()[0]
            numbers = [*contract.numeric_features, contract.customer.name]
            looked_at = validation.sample(con, "customer_features", numbers, SAMPLE)
            # no rows: what Dagster keeps of a run stays when a customer is erased
            quartiles = looked_at[list(contract.numeric_features)].quantile([0.25, 0.5, 0.75])
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": rows,
                "dagster/column_lineage": _lineage(contract),
                "at_risk": at_risk,
                "windows_read": {name: len(keys) for name, keys in needed.items()},
                "table_version": version,
                "distributions": plot(plots.histograms(_numbers(contract, looked_at), f"features at the end of {key}")),
                "quartiles": dg.MetadataValue.md(_as_markdown(quartiles.reset_index(names="quantile"))),
                "path": dg.MetadataValue.path(tables.path("customer_features")),
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return customer_features


def _usable_snapshot(contract: Contract, chosen: Window, ledger: Ledger, made_of: dict[str, str]) -> str | None:
    """The window before, where its features were made of what is there now; else None."""
    earlier = inputs.history(contract, chosen)[:-1]
    if contract.snapshots is not None or not earlier:
        return None
    entry = ledger.get("customer_features", {}).get(earlier[-1])
    current = entry is not None and entry.made_of == inputs.stamped(contract, made_of[earlier[-1]])
    return earlier[-1] if current else None


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

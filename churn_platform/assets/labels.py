"""Labels, partitioned by the window in which they matured; and the training set made from those that have."""

import dagster as dg
import pandas as pd
from matplotlib.figure import Figure

from churn_platform.assets.common import (
    WRITES,
    column_schema,
    feature_columns,
    history,
    needed_history,
    partitions,
    plot,
)
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection
from churn_platform.ml import labels, plots
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore
from churn_platform.windows import window


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The labels and the training set."""
    return [_churn_labels(contract), _training_set(contract)]


def _label_columns(contract: Contract) -> dict[str, tuple[str, str]]:
    return {
        contract.customer.name: (contract.customer.type, "the customer"),
        SNAPSHOT_TIME: ("timestamp", "when the customer was observed"),
        LABEL: ("integer", "1: churned within the horizon after the observation; 0: did not"),
        MATURED_AT: ("timestamp", "from when on the label may be known"),
    }


def _churn_labels(contract: Contract) -> dg.AssetsDefinition:
    main = contract.main_table

    @dg.asset(
        deps=[dg.AssetDep(f"validated_{main}", partition_mapping=history(contract))],
        partitions_def=partitions(contract),
        group_name="labels",
        kinds={"duckdb", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(_label_columns(contract))},
        description="The labels that matured in the window. Nothing in it was knowable before the window began, so "
        "reading the windows up to today can never leak a label from tomorrow.",
    )
    def churn_labels(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore]
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        with connection() as con:
            there = tables.windows(f"validated_{main}")
            tables.read(con, f"validated_{main}", needed_history(contract, key, there, f"validated_{main}"))
            version = tables.write("churn_labels", labels.build(con, contract, window(contract, key)), key)
            tables.read(con, "churn_labels", [key])
            rows, rate, first, last = con.execute(
                f"SELECT count(*), avg({LABEL}), min({SNAPSHOT_TIME}), max({SNAPSHOT_TIME}) FROM churn_labels"
            ).fetchall()[0]
            tables.read(con, "churn_labels", [known for known in tables.windows("churn_labels") if known <= key])
            figure = _rates(con.sql(f"SELECT {SNAPSHOT_TIME}, {LABEL} FROM churn_labels").df())
        found = {"churn_rate": rate, "observed_from": str(first), "observed_to": str(last)} if rows else {}
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": rows,
                "dagster/column_lineage": _lineage(contract),
                "table_version": version,
                "labels_so_far": plot(figure),
                **found,
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return churn_labels


def _rates(known: pd.DataFrame) -> Figure:
    """Customers and churn rate by the day of the observation."""
    by_day = known.groupby(known[SNAPSHOT_TIME].dt.strftime("%Y-%m-%d"))[LABEL].agg(["size", "mean"])
    return plots.rates(by_day.index.tolist(), by_day["size"].tolist(), by_day["mean"].tolist(), "labels by observation")


def _lineage(contract: Contract) -> dg.TableColumnLineage:
    table = contract.tables.items()[contract.main_table]
    outcome = contract.snapshots.label.column if contract.snapshots is not None else table.time_column
    upstream = dg.AssetKey(f"validated_{contract.main_table}")
    found = {contract.customer.name: [dg.TableColumnDep(upstream, table.customer)]}
    if outcome is not None:
        found[LABEL] = [dg.TableColumnDep(upstream, table.customer), dg.TableColumnDep(upstream, outcome)]
    return dg.TableColumnLineage(found)


def _training_set(contract: Contract) -> dg.AssetsDefinition:
    columns = {**_label_columns(contract), **feature_columns(contract)}
    lineage = {name: [dg.TableColumnDep(dg.AssetKey("customer_features"), name)] for name in contract.feature_names}
    lineage |= {name: [dg.TableColumnDep(dg.AssetKey("churn_labels"), name)] for name in _label_columns(contract)}

    @dg.asset(
        deps=["churn_labels", "feature_store"],
        group_name="training",
        kinds={"feast", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(columns)},
        description="Every mature label with the customer's features as they stood at the observation: Feast's "
        "point-in-time join, rows in = rows out.",
    )
    def training_set(
        tables: dg.ResourceParam[TableStore],
        store: dg.ResourceParam[FeatureStore],
    ) -> dg.MaterializeResult[None]:
        import pyarrow as pa

        versions = {name: tables.version(name) for name in ("churn_labels", "customer_features")}
        with connection() as con:
            tables.read(con, "churn_labels", version=versions["churn_labels"])
            known = con.sql("SELECT * EXCLUDE (_window) FROM churn_labels ORDER BY ALL").df()
        if known.empty:
            raise dg.Failure(
                description="no label is mature yet, so there is nothing to train on. Wait for the label's horizon to "
                "pass, or materialize churn_labels for earlier windows.",
                allow_retries=False,
            )
        rows = store.historical(known.rename(columns={SNAPSHOT_TIME: "event_timestamp"}))
        rows = rows.rename(columns={"event_timestamp": SNAPSHOT_TIME})
        version = tables.write("training_set", pa.Table.from_pandas(rows, preserve_index=False))
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(rows),
                "dagster/column_lineage": dg.TableColumnLineage(lineage),
                "churn_rate": float(rows[LABEL].mean()),
                "labels": plot(_rates(rows)),
                "observations": int(rows[SNAPSHOT_TIME].nunique()),
                "table_version": version,
                "input_versions": {name: int(v) for name, v in versions.items() if v is not None},
                "path": dg.MetadataValue.path(tables.path("training_set")),
            },
            data_version=dg.DataVersion(str(version)),
        )

    return training_set

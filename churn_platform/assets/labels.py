"""Labels, partitioned by the window in which they matured; and the training set made from those that have."""

import dagster as dg
import duckdb
from matplotlib.figure import Figure

from churn_platform import provenance, treatments
from churn_platform.assets.common import (
    POOL,
    WRITES,
    column_schema,
    contents,
    feature_columns,
    history,
    partitions,
    plot,
    require_windows,
)
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection
from churn_platform.ml import inputs, labels, plots, retention
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore
from churn_platform.windows import window

SHOWN = 24  # observations that a plot looks at: a window's cost must not grow with history


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
        pool=POOL,
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(_label_columns(contract))},
        description="The labels that matured in the window. Nothing in it was knowable before the window began, so "
        "reading the windows up to today can never leak a label from tomorrow.",
    )
    def churn_labels(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore]
    ) -> dg.MaterializeResult[None]:
        chosen = window(contract, context.partition_key)
        key, needed = chosen.key, inputs.needed_for_labels(contract, chosen)
        made_of = inputs.labels_made_of(contract, contents(contract, tables.ledger()), chosen)
        require_windows(needed, tables.windows(f"validated_{main}"), f"validated_{main}")
        with connection() as con:
            tables.read(con, f"validated_{main}", needed)
            built = labels.build(con, contract, chosen)
            version = tables.write("churn_labels", built, key, made_of=inputs.stamped(contract, made_of))
            tables.read(con, "churn_labels", [key])
            rows, rate, first, last = con.execute(
                f"SELECT count(*), avg({LABEL}), min({SNAPSHOT_TIME}), max({SNAPSHOT_TIME}) FROM churn_labels"
            ).fetchall()[0]
            so_far = [known for known in tables.windows("churn_labels") if known <= key]
            tables.read(con, "churn_labels", so_far[-SHOWN:])
            figure = _rates(con, "churn_labels")
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


def _rates(con: duckdb.DuckDBPyConnection, view: str) -> Figure:
    """Customers and churn rate by the day of the observation, the newest ones."""
    rows = con.execute(
        f"SELECT strftime({SNAPSHOT_TIME}, '%Y-%m-%d') AS day, count(*), avg({LABEL}) FROM {view} "
        f"GROUP BY 1 ORDER BY 1 DESC LIMIT {SHOWN}"
    ).fetchall()
    days, customers, rates = zip(*reversed(rows), strict=True) if rows else ((), (), ())
    return plots.rates(list(days), list(customers), list(rates), "labels by observation")


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
        "point-in-time join, rows in = rows out. Observations of customers who were contacted are left out.",
    )
    def training_set(
        tables: dg.ResourceParam[TableStore],
        store: dg.ResourceParam[FeatureStore],
    ) -> dg.MaterializeResult[None]:
        import pyarrow as pa

        versions = provenance.inputs(contract, tables)
        with connection() as con:
            tables.read(con, "churn_labels", version=versions["churn_labels"])
            counted = "churn_labels"
            if treatments.read(con, tables, versions.get(treatments.TABLE)):
                counted = f"({retention.untreated(contract, 'churn_labels')})"
            known = con.sql(f"SELECT * EXCLUDE (_window) FROM {counted} ORDER BY ALL").df()
            treated = con.execute("SELECT count(*) FROM churn_labels").fetchall()[0][0] - len(known)
            if not known.empty:
                _refuse_unripe(contract, con)
        if known.empty:
            raise dg.Failure(
                description="no label is mature yet, so there is nothing to train on. Wait for the label's horizon to "
                "pass, or materialize churn_labels for earlier windows.",
                allow_retries=False,
            )
        rows = store.historical(known.rename(columns={SNAPSHOT_TIME: "event_timestamp"}))
        if any(tables.version(name) != versions[name] for name in ("churn_labels", "customer_features")):
            raise dg.Failure(
                description="labels or features were written while the training set was being made, so it cannot be "
                "said what it is made of. Materialize training_set again."
            )
        rows = rows.rename(columns={"event_timestamp": SNAPSHOT_TIME})
        table = pa.Table.from_pandas(rows, preserve_index=False)
        version = tables.write("training_set", table, record={provenance.INPUTS: versions})
        with connection() as con:
            figure = _rates(con, tables.read(con, "training_set", version=version))
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(rows),
                "dagster/column_lineage": dg.TableColumnLineage(lineage),
                "churn_rate": float(rows[LABEL].mean()),
                "labels": plot(figure),
                "observations": int(rows[SNAPSHOT_TIME].nunique()),
                "treated_left_out": treated,
                "table_version": version,
                "input_versions": versions,
                "path": dg.MetadataValue.path(tables.path("training_set")),
            },
            data_version=dg.DataVersion(str(version)),
        )

    return training_set


def _refuse_unripe(contract: Contract, con: duckdb.DuckDBPyConnection) -> None:
    """Refuse labels that were not known by the end of the window under which they stand, whoever wrote them there.

    Raises:
        dagster.Failure: there are such labels.
    """
    newest = con.execute(f"SELECT _window, max({MATURED_AT}) FROM churn_labels GROUP BY 1 ORDER BY 1").fetchall()
    unripe = [key for key, matured in newest if matured > window(contract, key).end]
    if unripe:
        raise dg.Failure(
            description="churn_labels holds labels that mature after the end of the window under which they stand "
            f"({', '.join(unripe)}): nobody could know them then. Materialize churn_labels for these windows again.",
            allow_retries=False,
        )

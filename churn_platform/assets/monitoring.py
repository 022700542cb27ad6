"""Monitoring: has the world moved away from what the champion knows, and how good was it really."""

import tempfile
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa

from churn_platform import treatments
from churn_platform.assets.common import WRITES, history, linked, partitions, plot, require_window
from churn_platform.contract import LABEL, MODEL_VERSION, PROBABILITY, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection, identifier
from churn_platform.ml import drift, metrics, performance, plots, retention
from churn_platform.ml.features import AT_RISK
from churn_platform.resources.reports import Reports
from churn_platform.resources.storage import MissingTableError, TableStore
from churn_platform.resources.tracking import REFERENCE, RegistryError, Tracking
from churn_platform.settings import Settings

_DRIFT_SCHEMA = pa.schema(
    [
        ("column", pa.string()),
        ("method", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("watched", pa.bool_()),
        ("drifted", pa.bool_()),
        (MODEL_VERSION, pa.string()),
    ]
)
_PERFORMANCE_SCHEMA = pa.schema(
    [
        (MODEL_VERSION, pa.string()),
        (SNAPSHOT_TIME, pa.timestamp("us", "UTC")),
        ("rows", pa.int64()),
        ("treated", pa.int64()),
        *((name, pa.float64()) for name in ("churn_rate", "promised_roc_auc", *metrics.NAMES)),
    ]
)


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The drift report and the model's live performance."""
    return [_drift_report(contract), _model_performance(contract)]


def _drift_report(contract: Contract) -> dg.AssetsDefinition:
    @dg.asset(
        deps=["customer_features", "churn_scores"],
        partitions_def=partitions(contract),
        group_name="monitoring",
        kinds={"evidently", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        description="Evidently's comparison of the window's customers with those that the champion was trained on. The "
        "sensor `drift_sensor` reads its verdict.",
    )
    def drift_report(
        context: dg.AssetExecutionContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
        settings: dg.ResourceParam[Settings],
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        for table in ("customer_features", "churn_scores"):
            require_window(key, tables.windows(table), table)
        reports, name = Reports(contract, settings), f"drift-{key}.html"
        customer = identifier(contract.customer.name)
        with connection() as con:
            tables.read(con, "customer_features", [key])
            tables.read(con, "churn_scores", [key])
            current = con.sql(
                f"SELECT f.*, s.{PROBABILITY}, s.{MODEL_VERSION} FROM customer_features f "
                f"LEFT JOIN churn_scores s ON f.{customer} = s.{customer} AND f.{SNAPSHOT_TIME} = s.{SNAPSHOT_TIME} "
                f"WHERE {AT_RISK} ORDER BY ALL"
            ).df()
            scored_by = con.execute(f"SELECT min({MODEL_VERSION}) FROM churn_scores").fetchall()[0][0]
        try:
            champion = tracking.champion()
        except RegistryError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        reference = pd.read_parquet(tracking.artifact(champion.run_id, REFERENCE))
        # what an earlier champion said of the window is not to be compared with what this one says
        current[PROBABILITY] = current[PROBABILITY].where(current[MODEL_VERSION] == champion.version)
        try:
            with tempfile.TemporaryDirectory() as folder:
                page = Path(folder) / name
                found = drift.compare(contract, reference, current, page)
                report = reports.keep(name, page.read_bytes())
        except drift.DriftError as error:  # too few customers to speak of drift: an answer, not a fault
            context.log.warning("%s", error)
            tables.write("drift_report", _DRIFT_SCHEMA.empty_table(), key)
            reports.drop(name)
            return dg.MaterializeResult(
                metadata={"drifted": False, "why": str(error), "model_version": champion.version}
            )
        rows = [
            {
                "column": column.column,
                "method": column.method,
                "score": column.score,
                "threshold": column.threshold,
                "watched": column.watched,
                "drifted": column.drifted,
                MODEL_VERSION: champion.version,
            }
            for column in found.columns
        ]
        version = tables.write("drift_report", pa.Table.from_pylist(rows, schema=_DRIFT_SCHEMA), key)
        watched = [column for column in found.columns if column.watched]
        ratios = [column.score / column.threshold for column in watched]
        names = [column.column for column in watched]
        return dg.MaterializeResult(
            metadata={
                "drifted": found.drifted,
                "share_of_columns": found.share,
                "score_drift": found.score_drift or 0.0,
                "model_version": champion.version,
                "scored_by": scored_by or "",
                "columns": dg.MetadataValue.md(found.table()),
                "distances": plot(plots.drift(names, ratios, f"window {key} against the champion's training data")),
                **linked(report),
                "dagster/partition_row_count": len(rows),
                "table_version": version,
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return drift_report


def _model_performance(contract: Contract) -> dg.AssetsDefinition:
    @dg.asset(
        deps=["churn_labels", dg.AssetDep("churn_scores", partition_mapping=history(contract))],
        partitions_def=partitions(contract),
        group_name="monitoring",
        kinds={"scikitlearn", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        description="How good the scores were, on the labels that matured in the window. Only scores of a model that "
        "had not seen those labels count. Customers who were contacted are left out; those held out stand for them.",
    )
    def model_performance(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore], tracking: dg.ResourceParam[Tracking]
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        require_window(key, tables.windows("churn_labels"), "churn_labels")
        customer = identifier(contract.customer.name)
        with connection() as con:
            tables.read(con, "churn_labels", [key])
            try:
                tables.read(con, "churn_scores")
            except MissingTableError as error:
                raise dg.Failure(description=str(error), allow_retries=False) from error
            counted, weight = "churn_labels", "1.0"
            if treatments.read(con, tables):
                counted, weight = f"({retention.weighted(contract, 'churn_labels')})", f"l.{retention.WEIGHT}"
            joined = con.sql(
                f"SELECT l.{LABEL}, s.{PROBABILITY}, s.{MODEL_VERSION}, l.{SNAPSHOT_TIME}, "
                f"{weight} AS {retention.WEIGHT} FROM {counted} l "
                f"JOIN churn_scores s ON l.{customer} = s.{customer} AND l.{SNAPSHOT_TIME} = s.{SNAPSHOT_TIME} "
                "ORDER BY ALL"
            ).df()
        joined[SNAPSHOT_TIME] = joined[SNAPSHOT_TIME].dt.tz_convert("UTC")
        found, seen = performance.measure(contract, joined, lambda version: tracking.version(version).tags)
        if seen:
            context.log.info("%s labels are not counted: the model that scored them had seen them", f"{seen:,}")
        if not found:
            tables.write("model_performance", _PERFORMANCE_SCHEMA.empty_table(), key)
            return dg.MaterializeResult(
                metadata={"measured": False, "why": "no score made before its label was known has a mature label yet"}
            )
        table = pa.Table.from_pylist([measured.row() for measured in found], schema=_PERFORMANCE_SCHEMA)
        version = tables.write("model_performance", table, key)
        newest = found[-1]
        drop = newest.drop(contract)
        with connection() as con:
            tables.read(con, "model_performance")
            past = con.sql(
                f"SELECT strftime({SNAPSHOT_TIME}, '%Y-%m-%d') AS at, roc_auc, promised_roc_auc FROM model_performance "
                f"WHERE _window <= '{key}' ORDER BY 1"
            ).df()
        figure = plots.performance(past["at"].tolist(), past["roc_auc"].tolist(), past["promised_roc_auc"].tolist())
        return dg.MaterializeResult(
            metadata={
                "measured": True,
                "model_version": newest.model,
                "observed_at": str(newest.observed),
                "dagster/partition_row_count": len(found),
                "customers": newest.rows,
                "treated_left_out": newest.treated,
                **{name: newest.metrics[name] for name in ("roc_auc", "brier", "calibration_error")},
                **({} if drop is None else {"drop": drop}),
                "performance": plot(figure),
                "table_version": version,
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return model_performance

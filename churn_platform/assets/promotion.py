"""The champion: the model that is served."""

from datetime import UTC, datetime

import dagster as dg
import pyarrow as pa

from churn_platform.assets.common import WRITES, plot
from churn_platform.contract import Contract
from churn_platform.engine import connection
from churn_platform.ml import gates, plots
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import CHALLENGER, CHAMPION, RegistryError, Tracking

LOG = "promotion_log"


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The champion."""

    @dg.asset(
        deps=["candidate_model"],
        group_name="training",
        kinds={"mlflow"},
        owners=[contract.owner],
        pool="training",
        op_tags=WRITES,
        description="The challenger becomes champion, if every gate has passed for that very version. The registry's "
        "alias changes in one step; the table promotion_log keeps who, when, from which version and on what data.",
    )
    def champion(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore], tracking: dg.ResourceParam[Tracking]
    ) -> dg.MaterializeResult[None]:
        challenger, before = tracking.version_of(CHALLENGER), tracking.version_of(CHAMPION)
        if challenger is None:
            raise dg.Failure(
                description="there is no challenger: materialize candidate_model first.", allow_retries=False
            )
        version, previous = str(challenger.version), str(before.version) if before is not None else None
        logged = _last_promoted(tables)
        if previous == version and logged != version:  # a run was killed between alias and log
            previous = logged
        try:
            tracking.promote(version)
        except RegistryError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        if logged != version:
            entry = {
                "version": version,
                "previous": previous,
                "window": challenger.tags["window"],
                "training_set_version": int(challenger.tags["training_set_version"]),
                "test_roc_auc": float(challenger.tags["test_roc_auc"]),
                "by": context.run.tags.get("churn/reason", "a person or a job, by hand"),
                "dagster_run": context.run.run_id,
                "promoted_at": datetime.now(UTC),
            }
            tables.write(LOG, pa.Table.from_pylist([entry], schema=_SCHEMA), keep=True)
        with connection() as con:
            tables.read(con, LOG)
            past = con.execute(f"SELECT version, test_roc_auc FROM {LOG} ORDER BY promoted_at").fetchall()
        context.log.info("%s version %s is champion (before: %s)", tracking.model_name, version, previous)
        return dg.MaterializeResult(
            metadata={
                "model_version": version,
                "previous": previous or "none",
                "gates_passed": len(gates.names(contract)),
                "test_roc_auc": float(challenger.tags["test_roc_auc"]),
                "window": challenger.tags["window"],
                "champions": plot(plots.promotions([entry[0] for entry in past], [entry[1] for entry in past])),
            },
            data_version=dg.DataVersion(version),
        )

    return [champion]


_SCHEMA = pa.schema(
    [
        ("version", pa.string()),
        ("previous", pa.string()),
        ("window", pa.string()),
        ("training_set_version", pa.int64()),
        ("test_roc_auc", pa.float64()),
        ("by", pa.string()),
        ("dagster_run", pa.string()),
        ("promoted_at", pa.timestamp("us", "UTC")),
    ]
)


def _last_promoted(tables: TableStore) -> str | None:
    if tables.version(LOG) is None:
        return None
    with connection() as con:
        tables.read(con, LOG)
        row = con.execute(f"SELECT version FROM {LOG} ORDER BY promoted_at DESC LIMIT 1").fetchone()
    return str(row[0]) if row else None

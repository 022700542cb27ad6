"""The replay of a team's own history under several retraining policies."""

import dagster as dg
import pandas as pd

from churn_platform import treatments
from churn_platform.assets.common import plot
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection, identifier
from churn_platform.ml import plots, replay, retention
from churn_platform.ml.features import AT_RISK
from churn_platform.resources.storage import TableStore


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The replay."""

    @dg.asset(
        deps=["customer_features", "churn_labels"],
        group_name="monitoring",
        kinds={"scikitlearn"},
        owners=[contract.owner],
        pool="training",
        description="The history so far, replayed under several retraining policies, each with and without the "
        "champion gate: what each would have earned or lost against never retraining. By hand, or `churn replay`.",
    )
    def policy_replay(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore]
    ) -> dg.MaterializeResult[None]:
        try:
            report = replay.replay(contract, read_history(contract, tables), say=context.log.info)
        except replay.ReplayError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        return dg.MaterializeResult(
            metadata={
                "recommendation": report.recommendation,
                "windows": len(report.windows),
                "policies": dg.MetadataValue.md(report.table()),
                "against_never_retraining": plot(plots.policy_gains(report)),
                "roc_auc_by_window": plot(plots.policy_windows(report)),
            }
        )

    return [policy_replay]


def read_history(contract: Contract, tables: TableStore) -> pd.DataFrame:
    """What `ml.replay.replay` takes: every customer at risk at every observation, with the label as far as it is known.

    A label in which a contact had a part is not known, as for a training set.

    Raises:
        ReplayError: no window has been labelled yet.
    """
    if not tables.windows("churn_labels"):
        raise replay.ReplayError(
            "no window has been labelled yet, so there is no history to replay. `churn play` first."
        )
    customer = identifier(contract.customer.name)
    with connection() as con:
        tables.read(con, "customer_features")
        tables.read(con, "churn_labels")
        counted = "churn_labels"
        if treatments.read(con, tables):
            counted = f"({retention.untreated(contract, 'churn_labels')})"
        rows = con.sql(
            f"SELECT f.*, l.{LABEL}, l.{MATURED_AT}, l.{replay.WINDOW} AS {replay.KNOWN_IN} FROM customer_features f "
            f"LEFT JOIN {counted} l ON l.{customer} = f.{customer} AND l.{SNAPSHOT_TIME} = f.{SNAPSHOT_TIME} "
            f"WHERE {AT_RISK} ORDER BY f.{replay.WINDOW}, f.{customer}"
        ).df()
    for name in (SNAPSHOT_TIME, MATURED_AT):
        rows[name] = pd.to_datetime(rows[name], utc=True)
    return rows

"""The champion: the model that is served."""

import dagster as dg

from churn_platform import promotion
from churn_platform.assets.common import WRITES, plot
from churn_platform.contract import Contract
from churn_platform.ml import gates, plots
from churn_platform.registered import CHALLENGER
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import RegistryError, Tracking


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
        "alias changes in one step; the table promotion_log keeps who, when, from which version and on what evidence. "
        "`churn history` prints it, `churn rollback` brings an earlier champion back.",
    )
    def champion(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore], tracking: dg.ResourceParam[Tracking]
    ) -> dg.MaterializeResult[None]:
        challenger = tracking.version_of(CHALLENGER)
        if challenger is None:
            raise dg.Failure(
                description="there is no challenger: materialize candidate_model first.", allow_retries=False
            )
        version = str(challenger.version)
        by = context.run.tags.get("churn/reason", "a person or a job, by hand")
        try:
            promotion.promote(tables, tracking, version, by, context.run.run_id)
        except RegistryError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        past = promotion.history(tables, tracking)
        previous = past[-1].previous
        context.log.info("%s version %s is champion (before: %s)", tracking.model_name, version, previous)
        shown = [entry for entry in past if entry.version is not None and entry.test_roc_auc is not None]
        return dg.MaterializeResult(
            metadata={
                "model_version": version,
                "previous": previous or "none",
                "gates_passed": len(gates.names(contract)),
                "test_roc_auc": float(challenger.tags["test_roc_auc"]),
                "window": challenger.tags["window"],
                "champions": plot(
                    plots.promotions(
                        [str(entry.version) for entry in shown], [entry.test_roc_auc or 0.0 for entry in shown]
                    )
                ),
            },
            data_version=dg.DataVersion(version),
        )

    return [champion]

"""The weekly job that removes what the retention policy keeps no longer."""

import dagster as dg

from churn_platform import maintenance
from churn_platform.assets.common import WRITES
from churn_platform.contract import Contract
from churn_platform.settings import Settings

PRUNE = "prune"


def prune(contract: Contract) -> dg.JobDefinition:
    """The job. It carries the tag of writing runs, so that it waits for them and they for it."""

    @dg.op(name="remove_old_versions")
    def remove(context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings]) -> None:
        report = maintenance.prune(contract, settings, context.log.info)
        context.add_output_metadata(
            {
                "bytes": report.bytes,
                "files": sum(pruned.files for pruned in report.tables.values()),
                "kept_from": {name: pruned.oldest for name, pruned in report.tables.items()},
            }
        )

    @dg.job(
        name=PRUNE,
        tags=WRITES,
        description="Removes versions of tables that the policy (CHURN_KEEP_VERSIONS_DAYS, CHURN_KEEP_MODELS) keeps no "
        "longer. What the champion, the challenger and the newest models were trained on stays.",
    )
    def job() -> None:
        remove()

    return job


def weekly_prune(contract: Contract) -> dg.ScheduleDefinition:
    """Sunday night. It runs by default: without it every version ever written stays on disk."""
    return dg.ScheduleDefinition(
        name="weekly_prune",
        job_name=PRUNE,
        cron_schedule="0 3 * * 0",
        execution_timezone=contract.time.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Prunes old versions of tables, every Sunday night.",
    )

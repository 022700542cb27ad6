"""Schedules: the daily look at the source, the landing of answers, and the retrain by calendar for who wants one."""

import dagster as dg

from churn_platform import prediction_log
from churn_platform.automation import state
from churn_platform.automation.jobs import CYCLE, LAND_PREDICTIONS, PREPARE, RETRAIN
from churn_platform.automation.sensors import REASON, WINDOW, last_run, under_way, window_request
from churn_platform.contract import Contract
from churn_platform.ml import policy
from churn_platform.resources.segments import FINISHED
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.settings import Settings
from churn_platform.sources import Source


def schedules(contract: Contract) -> list[dg.ScheduleDefinition]:
    """Every schedule of a contract."""
    return [_daily(contract), _monthly(contract), _landing(contract)]


def _daily(contract: Contract) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron_schedule="0 5 * * *",
        job_name=CYCLE,
        name="daily_cycle",
        execution_timezone=contract.time.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every morning: starts the cycle of the oldest window that has landed and is not processed, also "
        "when the landing sensor was off, or when that window's run has failed before. Looks thoroughly: rows that "
        "came late into a database are found by it.",
    )
    def daily_cycle(
        context: dg.ScheduleEvaluationContext,
        source: dg.ResourceParam[Source],
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.RunRequest | dg.SkipReason:
        request = window_request(contract, source, tables, tracking, thorough=True)
        if isinstance(request, dg.SkipReason):
            return request
        if request.job_name == PREPARE:
            return dg.SkipReason("there is no champion yet: the landing sensor prepares windows until there is one")
        if request.job_name != CYCLE:
            return dg.SkipReason("the first champion has not scored yet: the landing sensor sees to it")
        run = last_run(context.instance, request)
        if run is not None and not run.is_finished:
            return dg.SkipReason(f"window {request.partition_key} is being processed in run {run.run_id}")
        day = context.scheduled_execution_time.date().isoformat()
        return dg.RunRequest(
            run_key=f"daily:{day}",
            partition_key=request.partition_key,
            asset_selection=request.asset_selection,
            tags=request.tags,
        )

    return daily_cycle


def _monthly(contract: Contract) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron_schedule="0 6 2 * *",
        job_name=RETRAIN,
        name="monthly_retrain",
        execution_timezone=contract.time.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="A retrain by calendar, within cooldown and budget. Off by default: retraining that nothing asks "
        "for has been measured to hurt as often as it helps.",
    )
    def monthly_retrain(
        context: dg.ScheduleEvaluationContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.RunRequest | dg.SkipReason:
        known = tables.windows("customer_features")
        decision = policy.scheduled(contract, known, state.retrained_windows(tracking))
        if not decision.retrain:
            return dg.SkipReason(decision.reason)
        day = context.scheduled_execution_time.date().isoformat()
        return dg.RunRequest(run_key=f"monthly:{day}", tags={REASON: decision.reason, WINDOW: known[-1]})

    return monthly_retrain


def _landing(contract: Contract) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron_schedule="*/5 * * * *",
        job_name=LAND_PREDICTIONS,
        name="prediction_log_landing",
        execution_timezone=contract.time.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every five minutes: lands what the endpoint answered, if there is anything to land. It waits for "
        "runs that write, and never asks for a second landing meanwhile.",
    )
    def prediction_log_landing(
        context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]
    ) -> dg.RunRequest | dg.SkipReason:
        place = prediction_log.segments(contract, settings)
        place.finish_left()
        finished = place.names(FINISHED)
        if not finished:
            return dg.SkipReason("the endpoint has finished no segment of its log since the last landing")
        if under_way(context.instance, LAND_PREDICTIONS) is not None:
            return dg.SkipReason("a landing is under way or waits for runs that write")
        return dg.RunRequest(run_key=f"landing:{context.scheduled_execution_time.isoformat()}")

    return prediction_log_landing

"""Sensors: new data starts a cycle; drift or fallen performance may start a retrain.

Each request carries a run key made of the window that it is about, so that a tick that is evaluated twice, or a
sensor that was stopped and goes on later, asks for a run once.
"""

import dagster as dg

from churn_platform.automation import state
from churn_platform.automation.jobs import CYCLE, PREPARE, RETRAIN, Jobs
from churn_platform.contract import Contract
from churn_platform.ml import policy
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import CHAMPION, Tracking
from churn_platform.sources import Source, SourceError

REASON = "churn/reason"
WINDOW = "churn/window"


def sensors(contract: Contract, jobs: Jobs) -> list[dg.SensorDefinition]:
    """Every sensor of a contract."""
    return [_landing(contract, jobs), _first_model(contract), _drift(contract), _performance(contract)]


def _landing(contract: Contract, jobs: Jobs) -> dg.SensorDefinition:
    @dg.sensor(
        jobs=[
            job for job in jobs if job.name in (CYCLE, PREPARE)
        ],  # before there is a champion a window is only prepared
        name="landing_sensor",
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Starts a window's cycle when its data is complete at the source; one window after the other.",
    )
    def landing_sensor(
        context: dg.SensorEvaluationContext,
        source: dg.ResourceParam[Source],
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.SensorResult | dg.SkipReason:
        found = window_request(contract, source, tables, tracking)
        if isinstance(found, dg.SkipReason):
            return found
        last = context.instance.get_runs(dg.RunsFilter(tags={WINDOW: str(found.partition_key)}), limit=1)
        if last and last[0].job_name == found.job_name:
            key, run = found.partition_key, last[0]
            if not run.is_finished:
                return dg.SkipReason(f"window {key} is being processed in run {run.run_id}")
            return dg.SkipReason(
                f"window {key} was not finished by run {run.run_id} ({run.status.value}); later windows wait for it. Look "
                "at the run, mend the cause and re-execute it; the schedule daily_cycle tries again every morning."
            )
        return dg.SensorResult(run_requests=[found])

    return landing_sensor


def window_request(
    contract: Contract, source: Source, tables: TableStore, tracking: Tracking
) -> dg.RunRequest | dg.SkipReason:
    """The run that the oldest due window asks for, or why there is none."""
    try:
        due = state.due(contract, source, tables)
    except SourceError as error:
        return dg.SkipReason(str(error))
    if not due:
        return dg.SkipReason("no window has landed that is not processed already")
    key = due[0].key
    job = CYCLE if tracking.version_of(CHAMPION) is not None else PREPARE
    return dg.RunRequest(
        run_key=f"{key}:{job}",
        job_name=job,
        partition_key=key,
        tags={REASON: f"window {key} has landed", WINDOW: key},
    )


def _first_model(contract: Contract) -> dg.SensorDefinition:
    @dg.sensor(
        job_name=RETRAIN,
        name="first_model_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Trains the first model as soon as enough labels are mature; does nothing once there is a champion.",
    )
    def first_model_sensor(
        context: dg.SensorEvaluationContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.RunRequest | dg.SkipReason:
        if tracking.version_of(CHAMPION) is not None:
            return dg.SkipReason("there is a champion")
        if not state.enough_labels(contract, tables):
            return dg.SkipReason(f"labels of fewer than {contract.model.min_windows} windows are mature")
        newest = tables.windows("churn_labels")[-1]
        return dg.RunRequest(run_key=f"first:{newest}", tags={REASON: "there is no champion yet", WINDOW: newest})

    return first_model_sensor


def _drift(contract: Contract) -> dg.SensorDefinition:
    @dg.sensor(
        job_name=RETRAIN,
        name="drift_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Retrains when the contract's policy finds drift worth it: N of the last M windows, cooldown, budget.",
    )
    def drift_sensor(
        context: dg.SensorEvaluationContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.SensorResult | dg.SkipReason:
        drifted = {
            key: bool(value) for key, value in state.verdicts(context.instance, "drift_report", "drifted").items()
        }
        return _judge(contract, context, tables, tracking, drifted=drifted, drops={})

    return drift_sensor


def _performance(contract: Contract) -> dg.SensorDefinition:
    @dg.sensor(
        job_name=RETRAIN,
        name="performance_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Retrains when live performance on mature labels has fallen by more than the contract allows.",
    )
    def performance_sensor(
        context: dg.SensorEvaluationContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.SensorResult | dg.SkipReason:
        drops = {
            key: float(value) for key, value in state.verdicts(context.instance, "model_performance", "drop").items()
        }
        return _judge(contract, context, tables, tracking, drifted={}, drops=drops)

    return performance_sensor


def _judge(
    contract: Contract,
    context: dg.SensorEvaluationContext,
    tables: TableStore,
    tracking: Tracking,
    drifted: dict[str, bool],
    drops: dict[str, float],
) -> dg.SensorResult | dg.SkipReason:
    """Put what is known to the policy. The cursor holds the newest window judged: each window is judged once."""
    judged = max([*drifted, *drops], default="")
    if judged <= (context.cursor or ""):
        return dg.SkipReason(f"nothing new since window {context.cursor}" if context.cursor else "no report yet")
    if tracking.version_of(CHAMPION) is None:
        return dg.SkipReason("there is no champion that could be retrained")
    decision = policy.decide(
        contract, tables.windows("customer_features"), drifted, drops, state.retrained_windows(tracking)
    )
    context.log.info("window %s: %s: %s", judged, "retrain" if decision.retrain else "no retrain", decision.reason)
    if not decision.retrain:
        return dg.SensorResult(skip_reason=f"window {judged}: {decision.reason}", cursor=judged)
    request = dg.RunRequest(run_key=f"retrain:{judged}", tags={REASON: decision.reason, WINDOW: judged})
    return dg.SensorResult(run_requests=[request], cursor=judged)

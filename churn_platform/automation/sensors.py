"""Sensors: new data starts a cycle; drift or fallen performance may start a retrain.

Each request carries a run key made of the window that it is about, so that a tick that is evaluated twice, or a
sensor that was stopped and goes on later, asks for a run once.
"""

import dagster as dg

from churn_platform.automation import state
from churn_platform.automation.jobs import CYCLE, PREPARE, RETRAIN, SCORE, Jobs
from churn_platform.contract import Contract
from churn_platform.ml import policy
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.sources import Source, SourceError
from churn_platform.windows import window as window_of

REASON = "churn/reason"
WINDOW = "churn/window"
MARK = "churn/inputs"  # a digest of what the run was asked for because of


def sensors(contract: Contract, jobs: Jobs) -> list[dg.SensorDefinition]:
    """Every sensor of a contract."""
    return [_landing(contract, jobs), _first_model(contract), _drift(contract), _performance(contract)]


def _landing(contract: Contract, jobs: Jobs) -> dg.SensorDefinition:
    @dg.sensor(
        jobs=[
            job for job in jobs if job.name in (CYCLE, PREPARE, SCORE)
        ],  # before there is a champion a window is only prepared; its first scores come later
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
        key, run = found.partition_key, last_run(context.instance, found)
        if run is not None and not run.is_finished:
            return dg.SkipReason(f"window {key} is being processed in run {run.run_id}")
        if run is not None:
            again = "; the schedule daily_cycle tries again every morning" if found.job_name == CYCLE else ""
            return dg.SkipReason(
                f"window {key} was not finished by run {run.run_id} ({run.status.value}); later windows wait for it. "
                f"Look at the run, mend the cause and re-execute it{again}."
            )
        return dg.SensorResult(run_requests=[found])

    return landing_sensor


def window_request(
    contract: Contract, source: Source, tables: TableStore, tracking: Tracking, thorough: bool = False
) -> dg.RunRequest | dg.SkipReason:
    """The run that the oldest due window asks for, or why there is none."""
    has_champion = tracking.usable_champion() is not None
    try:
        due = state.due(contract, state.look(contract, source, thorough), tables, has_champion)
    except SourceError as error:
        return dg.SkipReason(str(error))
    if due:
        return request(due[0])
    if (behind := state.not_online(tables)) is not None:
        return request(state.online_work(contract, behind))
    if has_champion and (unscored := state.unscored(tables)) is not None:
        return request(state.Work(window_of(contract, unscored), SCORE, "the first champion"))
    return dg.SkipReason("no window has landed that is not processed already")


def request(work: state.Work) -> dg.RunRequest:
    """The run that does some work; the same work asks for it once."""
    key = work.window.key
    return dg.RunRequest(
        run_key=f"{key}:{work.job}:{work.mark}",
        job_name=work.job,
        partition_key=key,
        asset_selection=[dg.AssetKey(name) for name in work.assets] or None,
        tags={REASON: work.reason, WINDOW: key, MARK: work.mark},
    )


def last_run(instance: dg.DagsterInstance, request: dg.RunRequest) -> dg.DagsterRun | None:
    """The newest run of the job that a request asks for, on the same window and for the same cause.

    One that is under way counts whatever caused it: what it leaves to do is seen when it is over.
    """
    runs = instance.get_runs(
        dg.RunsFilter(job_name=request.job_name, tags={WINDOW: str(request.partition_key)}), limit=1
    )
    if runs and runs[0].is_finished and runs[0].tags.get(MARK, request.tags[MARK]) != request.tags[MARK]:
        return None
    return runs[0] if runs else None


def under_way(instance: dg.DagsterInstance, job: str) -> dg.DagsterRun | None:
    """A run of a job that is queued or runs: its result has to be seen before another is asked for."""
    finished = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
    statuses = [status for status in dg.DagsterRunStatus if status not in finished]
    runs = instance.get_runs(dg.RunsFilter(job_name=job, statuses=statuses), limit=1)
    return runs[0] if runs else None


def _first_model(contract: Contract) -> dg.SensorDefinition:
    @dg.sensor(
        job_name=RETRAIN,
        name="first_model_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Trains the first model as soon as enough labels are mature; rests once there is a champion.",
    )
    def first_model_sensor(
        context: dg.SensorEvaluationContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.RunRequest | dg.SkipReason:
        if tracking.usable_champion() is not None:
            return dg.SkipReason("there is a champion")
        lacking = state.lacking_labels(contract, tables) or state.refused_already(contract, tables, tracking)
        if lacking:
            return dg.SkipReason(lacking)
        run = under_way(context.instance, RETRAIN)
        if run is not None:
            return dg.SkipReason(f"a model is being trained in run {run.run_id}")
        newest = tables.windows("churn_labels")[-1]
        return dg.RunRequest(run_key=f"first:{newest}", tags={REASON: "there is no champion yet", WINDOW: newest})

    return first_model_sensor


def _drift(contract: Contract) -> dg.SensorDefinition:
    @dg.sensor(
        job_name=RETRAIN,
        name="drift_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Retrains when the policy finds drift worth it: N of the last M windows, cooldown, budget.",
    )
    def drift_sensor(
        context: dg.SensorEvaluationContext,
        tables: dg.ResourceParam[TableStore],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.SensorResult | dg.SkipReason:
        return _judge(contract, context, tables, tracking, "drift_report")

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
        return _judge(contract, context, tables, tracking, "model_performance")

    return performance_sensor


def _judge(
    contract: Contract,
    context: dg.SensorEvaluationContext,
    tables: TableStore,
    tracking: Tracking,
    asset: str,
) -> dg.SensorResult | dg.SkipReason:
    """Put what one monitoring asset says of the champion to the policy.

    The cursor holds the newest window judged. Every window after it is judged, each as of its own time: a sensor that
    was late decides as one that was not, and asks for one run at most.
    """
    champion = tracking.usable_champion()
    if champion is None:
        return dg.SkipReason("there is no champion that could be retrained")
    drifted, drops = state.monitored(context.instance, str(champion.version))
    reported = sorted(drifted if asset == "drift_report" else drops)
    new = [window for window in reported if window > (context.cursor or "")]
    if not new:
        return dg.SkipReason(f"nothing new since window {context.cursor}" if context.cursor else "no report yet")
    run = under_way(context.instance, RETRAIN)
    if run is not None:
        return dg.SkipReason(f"a model is being trained in run {run.run_id}: window {new[0]} is judged after it")
    known, retrained = tables.windows("customer_features"), state.retrained_windows(tracking)
    words = ""
    for window in new:
        decision = policy.decide(
            contract,
            [key for key in known if key <= window],
            drifted if asset == "drift_report" else {},
            drops if asset == "model_performance" else {},
            retrained,
        )
        context.log.info("window %s: %s: %s", window, "retrain" if decision.retrain else "no retrain", decision.reason)
        words = f"window {window}: {decision.reason}"
        if decision.retrain:
            if context.instance.get_runs(dg.RunsFilter(job_name=RETRAIN, tags={WINDOW: window}), limit=1):
                words = f"window {window} has asked for a retrain already"
                continue
            request = dg.RunRequest(run_key=f"retrain:{window}", tags={REASON: decision.reason, WINDOW: window})
            return dg.SensorResult(run_requests=[request], cursor=new[-1])
    return dg.SensorResult(skip_reason=words, cursor=new[-1])

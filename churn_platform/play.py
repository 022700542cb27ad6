"""Playing history: what the daemon would have done, window after window, in one process.

A platform that starts on years of data has to catch up before it can watch anything. The same jobs run as in
production, by the same rules (prepare, train the first model when enough labels are mature, then cycle and let the
policy decide), only without a process per run: libraries that take seconds to import are imported once.
"""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_platform.assets.common import POOL, SIDE_BY_SIDE
from churn_platform.assets.feature_store import MORE_WINDOWS
from churn_platform.automation import state
from churn_platform.automation.alone import process
from churn_platform.automation.jobs import RETRAIN, SCORE
from churn_platform.automation.sensors import REASON, WINDOW, request
from churn_platform.definitions import build, resources
from churn_platform.ml import policy
from churn_platform.windows import window as window_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from churn_platform.contract import Contract
    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import Tracking
    from churn_platform.settings import Settings
    from churn_platform.sources import Source


@dataclass(frozen=True)
class Outcome:
    """How one run of a job ended. `why` is empty when it succeeded."""

    job: str
    window: str
    seconds: float
    why: str

    @property
    def succeeded(self) -> bool:
        """Whether the run did what it was to do."""
        return not self.why


class Player:
    """Runs the jobs of a contract in this process."""

    def __init__(
        self, contract: Contract, settings: Settings, instance: dg.DagsterInstance, say: Callable[[str], None]
    ) -> None:
        self.contract = contract
        self.instance = instance
        self.say = say
        self.definitions = build(contract, settings)
        parts: dict[str, Any] = resources(contract, settings)
        self.source: Source = parts["source"]
        self.tables: TableStore = parts["tables"]
        self.tracking: Tracking = parts["tracking"]

    def catch_up(self, anew: bool = False) -> bool:
        """Process every window that is due, oldest first; returns whether all of them were.

        With `anew`, the windows are due as well that were computed under an earlier state of the contract.

        A window that fails stops the play: later windows are computed from it. A candidate that its gates refuse does
        not: that is an answer, and more labels may change it.
        """
        outdated = [] if anew else state.outdated(self.contract, self.tables)
        if outdated:
            self.say(
                f"{len(outdated)} windows were computed under an earlier state of the contract and stay as they are; "
                "`churn play --anew` computes them again"
            )
        seen = state.look(self.contract, self.source, thorough=True)
        done: list[state.Work] = []
        while due := state.due(self.contract, seen, self.tables, self._champion() is not None, anew):
            if not done:
                self.say(f"{len(due)} windows to process")
            work = due[0]
            if work in done:
                self.say(f"window {work.window.key} was processed and is due again: something changes it meanwhile")
                return False
            done.append(work)
            if not self._process(work, f"[{len(done)}/{len(done) + len(due) - 1}]", last=len(due) == 1):
                self._bring_online()
                return False
        if not done:
            self.say("every window that has landed is processed already")
        self._bring_online()
        if not done and self._champion() is None:  # a play that was killed before its first model
            self._first_model(max(self.tables.windows("customer_features"), default=""))
        elif self._champion() is not None:  # or right after it
            self._first_scores()
        return True

    def _process(self, work: state.Work, place: str, last: bool) -> bool:
        """Run what is due, and what follows from it; returns whether it succeeded."""
        has_champion = self._champion() is not None
        if not self.run(work, place, {} if last else {MORE_WINDOWS: "yes"}).succeeded:
            return False
        if not has_champion:
            self._first_model(work.window.key)
        elif not work.assets:
            self._retrain_if_worth_it(work.window.key)
        return True

    def _bring_online(self) -> None:
        behind = state.not_online(self.tables)
        if behind is not None:
            self.run(state.online_work(self.contract, behind), "[online]")

    def _champion(self) -> str | None:
        version = self.tracking.usable_champion()
        return None if version is None else str(version.version)

    def _first_model(self, newest: str) -> None:
        if state.lacking_labels(self.contract, self.tables):
            return
        if state.refused_already(self.contract, self.tables, self.tracking):
            return
        if self._retrain(newest, "there is no champion yet").succeeded:
            self._first_scores()

    def _first_scores(self) -> None:
        newest = state.unscored(self.tables)
        if newest is not None:
            self.run(state.Work(window_of(self.contract, newest), SCORE, "the first champion"), "[model]")

    def _retrain_if_worth_it(self, key: str) -> None:
        drifted, drops = state.monitored(self.instance, str(self._champion()))
        decision = policy.decide(
            self.contract,
            self.tables.windows("customer_features"),
            drifted,
            drops,
            state.retrained_windows(self.tracking),
        )
        self.say(f"    policy: {'retrain' if decision.retrain else 'no retrain'}: {decision.reason}")
        if decision.retrain:
            self._retrain(key, decision.reason)

    def _retrain(self, key: str, reason: str) -> Outcome:
        return self._execute(RETRAIN, key, "[model]", {REASON: reason, WINDOW: key})

    def run(self, work: state.Work, place: str, tags: Mapping[str, str] | None = None) -> Outcome:
        """Do some work here and now; one line says how it went, with `place` in front."""
        asked = request(work)
        return self._execute(work.job, work.window.key, place, {**asked.tags, **(tags or {})}, work)

    def _execute(
        self, job: str, key: str, place: str, tags: Mapping[str, str], work: state.Work | None = None
    ) -> Outcome:
        """Run a job here and now; with `work`, on its window and on those assets of the job that it is about."""
        started = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):  # Feast prints its progress; ours is one line a window
            result = self.definitions.resolve_job_def(job).execute_in_process(
                instance=self.instance,
                partition_key=key if work else None,
                asset_selection=[dg.AssetKey(name) for name in work.assets] or None if work else None,
                tags={**tags, **process()},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )
        outcome = Outcome(job, key, time.monotonic() - started, "" if result.success else _why(result))
        line = f"{place:>8} {job:<15} {key}  {outcome.seconds:5.1f} s"
        self.say(line if outcome.succeeded else f"{line}  FAILED\n{outcome.why}")
        return outcome


def _why(result: dg.ExecuteInProcessResult) -> str:
    """What failed, in the words of the checks and assets themselves."""
    found = []
    for event in result.all_events:
        if event.event_type_value == "ASSET_CHECK_EVALUATION":
            evaluation: Any = event.event_specific_data
            if not evaluation.passed:
                words = evaluation.metadata.get("verdict")
                remedy = evaluation.metadata.get("what_to_do")
                asset, said = evaluation.asset_key.to_user_string(), words.value if words else ""
                found.append(f"  {asset}: {evaluation.check_name}: {said}")
                found += [f"    -> {remedy.value}"] if remedy else []
        elif event.event_type_value == "STEP_FAILURE":
            failure: Any = event.event_specific_data
            description = failure.user_failure_data.description if failure.user_failure_data else None
            error = failure.error.cause or failure.error if failure.error else None
            text = description or (error.message.strip() if error else "")
            if "blocking asset check" not in text:
                found.append(f"  {event.step_key}: {text}")
    return "\n".join(found) or "  see the run in Dagster"


def catch_up(contract: Contract, settings: Settings, say: Callable[[str], None], anew: bool = False) -> bool:
    """Process all that has landed, on the instance at DAGSTER_HOME."""
    with dg.DagsterInstance.get() as instance:
        _widen_pool(instance)
        return Player(contract, settings, instance, say).catch_up(anew)


def _widen_pool(instance: dg.DagsterInstance) -> None:
    """Let a backfill run windows side by side; dagster.yaml can only say one limit for all pools.

    A limit that somebody has set stays.
    """
    limits = {limit.name: limit for limit in instance.event_log_storage.get_pool_limits()}
    if POOL not in limits or limits[POOL].from_default:
        instance.event_log_storage.set_concurrency_slots(POOL, SIDE_BY_SIDE)

"""Work that must not run beside a run that may write.

It is itself a run with the tag that lets one write at a time. Runs that Dagster makes up by itself, for assets chosen
in its pages or a backfill of them, have no such tag: so every run that is going on counts.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from churn_platform.assets.common import WRITES
from churn_platform.local import LocalError, started

T = TypeVar("T")

PROCESS = "churn/process"  # of a run inside our own process: which one, so that one that was killed is recognized


def process() -> dict[str, str]:
    """The tag that says which process a run is in."""
    return {PROCESS: f"{os.getpid()} {started(os.getpid())}"}


def alone(
    instance: dg.DagsterInstance, name: str, work: Callable[[], T], wait_seconds: float, say: Callable[[str], None]
) -> T:
    """Do something as a run of Dagster, once no other run is going on; jobs that write and are queued start after it.

    Args:
        instance: where runs are recorded.
        name: what the run is called. What the work is about stands nowhere: neither in the run nor in its log.
        work: what to do.
        wait_seconds: how long to wait for the runs that are going on now.
        say: told what is waited for.

    Raises:
        LocalError: another run goes on.
    """
    done: list[T] = []

    @dg.op(name=name)
    def step(context: dg.OpExecutionContext) -> None:
        _wait(instance, context.run_id, wait_seconds, say)
        done.append(work())

    @dg.job(name=name, tags={**WRITES, **process()}, executor_def=dg.in_process_executor)
    def job() -> None:
        step()

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    job.execute_in_process(instance=instance, run_config=quiet)
    return done[0]


def _wait(instance: dg.DagsterInstance, ours: str, seconds: float, say: Callable[[str], None]) -> None:
    deadline, told = time.monotonic() + seconds, False
    while others := [run for run in _going_on(instance) if run.run_id != ours]:
        listed = ", ".join(f"{run.job_name} ({run.run_id[:8]})" for run in others)
        if time.monotonic() > deadline:
            raise LocalError(
                f"runs are still going on: {listed}. Try again when they have ended. If no process works on them any "
                "more, cancel them in Dagster, under Runs."
            )
        if not told:
            say(f"waiting for runs: {listed}")
            told = True
        time.sleep(0.5)


def _going_on(instance: dg.DagsterInstance) -> Iterator[dg.DagsterRun]:
    """The runs that are going on. One whose process was killed is closed as failed: nobody else would do it."""
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES)):
        pid, _, since = run.tags.get(PROCESS, "").partition(" ")
        if pid and started(int(pid)) != since:
            instance.report_run_failed(run, "The process of this run was killed.")
        else:
            yield run

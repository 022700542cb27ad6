"""What must not run beside a run that may write waits for all of them, whoever started them."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from churn_platform.assets.common import WRITES
from churn_platform.automation.alone import PROCESS, alone
from churn_platform.local import LocalError


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.mark.parametrize("tags", [{}, WRITES], ids=["assets that somebody chose in the catalogue", "a job"])
def test_nothing_is_done_beside_a_run_that_goes_on(instance: dg.DagsterInstance, tags: dict[str, str]) -> None:
    going_on = create_run_for_test(
        instance, job_name="__ASSET_JOB", status=dg.DagsterRunStatus.STARTED, tags=dict(tags)
    )
    done: list[str] = []
    said: list[str] = []
    with pytest.raises(LocalError, match="still going on: __ASSET_JOB"):
        alone(instance, "erasure", lambda: done.append("done"), 0.1, said.append)
    assert done == []
    assert "__ASSET_JOB" in said[0]
    instance.report_run_canceled(going_on)
    alone(instance, "erasure", lambda: done.append("done"), 0.1, said.append)
    assert done == ["done"]


def test_a_run_whose_process_was_killed_is_closed_and_not_waited_for(instance: dg.DagsterInstance) -> None:
    killed = create_run_for_test(
        instance, status=dg.DagsterRunStatus.STARTED, tags={**WRITES, PROCESS: "999999999 long ago"}
    )
    assert alone(instance, "erasure", lambda: "done", 0.1, print) == "done"
    run = instance.get_run_by_id(killed.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE

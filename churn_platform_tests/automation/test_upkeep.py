"""The weekly job that prunes."""

from __future__ import annotations

import dagster as dg
import pyarrow as pa
import pytest

from churn_platform.assets.common import WRITES
from churn_platform_tests import graph
from churn_platform_tests.ageing import age


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.played().copy(tmp_path).use(monkeypatch)


def test_the_job_prunes_and_says_how_much(shop):
    for _ in range(2):
        shop.tables.write("drift_report", pa.table({"n": [1]}), "2023-05-01")
    age(shop.tables, 60, "drift_report")
    result = shop.run("prune")
    assert result.success
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    said = {name: entry.value for name, entry in output.event_specific_data.metadata.items()}
    assert said["files"] == 2
    assert said["bytes"] > 0
    assert said["kept_from"]["drift_report"] == shop.tables.version("drift_report") - 2  # two commits of the pruning


def test_it_runs_every_week_by_itself_and_never_beside_a_run_that_writes(shop):
    schedule = shop.definitions.resolve_schedule_def("weekly_prune")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert schedule.cron_schedule == "0 3 * * 0"
    assert shop.definitions.resolve_job_def("prune").tags.items() >= WRITES.items()

"""The schedules: the daily look at the source, the landing of answers, and the retrain by calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from churn_platform.automation.jobs import CYCLE, LAND_PREDICTIONS
from churn_platform.automation.sensors import REASON, WINDOW
from churn_platform.sources.base import SourceError
from churn_platform_tests import answers, graph

JULY = "2023-07-01"
MORNING = datetime(2023, 8, 2, 5, tzinfo=UTC)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Played until June."""
    return graph.played().copy(tmp_path).use(monkeypatch)


def tick(shop, name: str, source=None):
    resources = {
        "source": source or shop.source,
        "tables": shop.tables,
        "tracking": shop.tracking,
        "settings": shop.settings,
    }
    schedule = shop.definitions.resolve_schedule_def(name)
    context = dg.build_schedule_context(
        instance=shop.instance,
        scheduled_execution_time=MORNING,
        resources={name: resources[name] for name in schedule.required_resource_keys},
        repository_def=shop.definitions.get_repository_def(),
    )
    return schedule.evaluate_tick(context)


def test_with_nothing_new_there_is_no_cycle(shop):
    found = tick(shop, "daily_cycle")
    assert found.run_requests == []
    assert found.skip_message == "no window has landed that is not processed already"


def test_a_window_that_has_landed_gets_its_cycle_once_a_morning(shop):
    shop.land(date(2023, 9, 1))
    keys = set()
    for _ in range(2):
        (request,) = tick(shop, "daily_cycle").run_requests
        assert request.partition_key == JULY
        assert request.tags[REASON] == f"window {JULY} has landed"
        assert request.tags[WINDOW] == JULY
        keys.add(request.run_key)
    assert keys == {"daily:2023-08-02"}


def test_a_window_whose_run_failed_is_tried_again(shop):
    shop.land(date(2023, 8, 1))
    create_run_for_test(shop.instance, job_name=CYCLE, status=dg.DagsterRunStatus.FAILURE, tags={WINDOW: JULY})
    assert len(tick(shop, "daily_cycle").run_requests) == 1


def test_a_window_that_is_being_processed_is_left_alone(shop):
    shop.land(date(2023, 8, 1))
    run = create_run_for_test(shop.instance, job_name=CYCLE, status=dg.DagsterRunStatus.STARTED, tags={WINDOW: JULY})
    found = tick(shop, "daily_cycle")
    assert found.run_requests == []
    assert run.run_id in found.skip_message


def test_before_there_is_a_champion_the_cycle_waits(tmp_path, monkeypatch):
    new = graph.landed().copy(tmp_path).use(monkeypatch)
    assert "there is no champion yet" in tick(new, "daily_cycle").skip_message


def test_a_source_that_cannot_be_read_is_a_reason_to_skip(shop):
    class Away:
        def watermark(self, con):
            raise SourceError("the bucket is not to be reached")

    assert tick(shop, "daily_cycle", Away()).skip_message == "the bucket is not to be reached"


def test_the_calendar_retrains_after_the_cooldown(shop):
    """The first model is as of April, and the newest window is June."""
    (request,) = tick(shop, "monthly_retrain").run_requests
    assert request.run_key == "monthly:2023-08-02"
    assert request.tags == {**request.tags, REASON: "the schedule asks for it", WINDOW: "2023-06-01"}


def test_the_calendar_keeps_to_cooldown_and_budget(shop):
    longer = shop.other(("cooldown_windows: 2", "cooldown_windows: 3"))
    assert "cooldown" in tick(longer, "monthly_retrain").skip_message
    poor = shop.other(("retrains: 3", "retrains: 1"))
    assert "used up the budget" in tick(poor, "monthly_retrain").skip_message


def test_the_calendar_does_not_retrain_where_there_is_no_data(tmp_path, monkeypatch):
    empty = graph.empty(tmp_path).use(monkeypatch)
    assert tick(empty, "monthly_retrain").skip_message == "there is no window yet"


@pytest.mark.parametrize("waiting", [None, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_answers_are_landed_when_there_are_some_and_by_one_run_at_a_time(tmp_path, monkeypatch, waiting):
    shop = graph.make(tmp_path).use(monkeypatch)
    assert "no segment" in tick(shop, "prediction_log_landing").skip_message
    answers.segment(shop, answers.line())
    if waiting is not None:
        create_run_for_test(shop.instance, job_name=LAND_PREDICTIONS, status=waiting)
        assert "under way" in tick(shop, "prediction_log_landing").skip_message
        return
    keys = {request.run_key for _ in range(2) for request in tick(shop, "prediction_log_landing").run_requests}
    assert keys == {"landing:2023-08-02T05:00:00+00:00"}
    assert shop.run(LAND_PREDICTIONS).success
    assert "no segment" in tick(shop, "prediction_log_landing").skip_message


def test_answers_that_a_killed_endpoint_left_are_landed_too(tmp_path, monkeypatch):
    shop = graph.make(tmp_path).use(monkeypatch)
    answers.segment(shop, answers.line(), ending=".jsonl.open", age=3600)
    assert len(tick(shop, "prediction_log_landing").run_requests) == 1

"""The sensors: what asks for a run, what does not, and that nothing is asked for twice."""

from __future__ import annotations

import json
from datetime import date

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.test_utils import create_run_for_test

from churn_platform.assets.feature_store import LOG
from churn_platform.automation import state
from churn_platform.automation.jobs import CYCLE, PREPARE, RETRAIN, SCORE
from churn_platform.automation.sensors import REASON, WINDOW
from churn_platform.registered import FEATURES_VERSION
from churn_platform.sources.base import SourceError
from churn_platform_tests import graph

WINDOWS = [f"2023-{month:02}-01" for month in range(1, 7)]
APRIL, MAY, JUNE = WINDOWS[3:]
POLICY = "retraining: {drifted_windows: 1, of_last: 1, cooldown_windows: 2, budget: {retrains: 3, windows: 12}}"
AT_ONCE = (POLICY, "retraining: {cooldown_windows: 0}")


def rows(**values) -> pa.Table:
    return pa.Table.from_pylist([values])


def registered(shop, window: str, champion: bool = True) -> str:
    """A version of the model in the registry, trained as of a window; there is no model behind it."""
    tracking = shop.tracking
    if not tracking.versions():
        tracking.client.create_registered_model(tracking.model_name)
    tags = {
        "window": window,
        "features": json.dumps(shop.contract.feature_names),
        FEATURES_VERSION: str(shop.contract.features.version),
    }
    version = tracking.client.create_model_version(tracking.model_name, source="nowhere", tags=tags)
    if champion:
        tracking.client.set_registered_model_alias(tracking.model_name, "champion", version.version)
    return str(version.version)


def processed(shop, *windows: str, watched: bool = False) -> None:
    """Let windows look as their cycle leaves them, without the work."""
    for key in windows:
        for table in ("customer_features", LOG, "churn_labels"):
            shop.tables.write(table, rows(x=1, online=True), key)
        for table in ("churn_scores", "drift_report", "model_performance") if watched else ():
            shop.tables.write(table, rows(x=1), key)


@pytest.fixture(scope="module")
def _template(tmp_path_factory):
    """Six windows that have landed and are processed; version 1, trained as of March, is champion."""
    with pytest.MonkeyPatch.context() as patch:
        found = graph.empty(tmp_path_factory.mktemp("sensors")).use(patch)
        found.land(date(2023, 7, 1))
        processed(found, *WINDOWS)
        registered(found, WINDOWS[2])
    graph.forget()
    return found


@pytest.fixture
def shop(_template, tmp_path, monkeypatch):
    return _template.copy(tmp_path).use(monkeypatch)


@pytest.fixture
def new_shop(tmp_path, monkeypatch):
    """Nothing has landed; there is no model."""
    return graph.empty(tmp_path).use(monkeypatch)


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


class Tick:
    """What a sensor says at one tick."""

    def __init__(self, shop, name: str, instance, cursor: str | None = None, source=None):
        resources = {"source": source or shop.source, "tables": shop.tables, "tracking": shop.tracking}
        needed = shop.definitions.resolve_sensor_def(name)
        context = dg.build_sensor_context(
            instance=instance,
            cursor=cursor,
            resources=resources,
            repository_def=shop.definitions.get_repository_def(),
        )
        data = needed.evaluate_tick(context)
        self.requests = data.run_requests or []
        self.skipped = data.skip_message or ""
        self.cursor = data.cursor

    @property
    def asked(self) -> list[tuple[str | None, str | None]]:
        return [(request.job_name, request.partition_key) for request in self.requests]


# -- data that lands


def test_before_anything_has_landed_nothing_is_asked_for(new_shop, instance):
    tick = Tick(new_shop, "landing_sensor", instance)
    assert tick.asked == []
    assert tick.skipped == "no window has landed that is not processed already"


def test_windows_are_asked_for_one_at_a_time_oldest_first(new_shop, instance):
    new_shop.land(date(2023, 4, 1))
    for key in WINDOWS[:3]:
        tick = Tick(new_shop, "landing_sensor", instance)
        assert tick.asked == [(PREPARE, key)]
        assert tick.requests[0].tags[WINDOW] == key
        assert tick.requests[0].tags[REASON] == f"window {key} has landed"
        processed(new_shop, key)
    assert Tick(new_shop, "landing_sensor", instance).asked == []


def test_the_same_window_asked_for_twice_carries_the_same_run_key(new_shop, instance):
    new_shop.land(date(2023, 2, 1))
    keys = {Tick(new_shop, "landing_sensor", instance).requests[0].run_key for _ in range(2)}
    assert len(keys) == 1


@pytest.mark.parametrize("table", ["churn_labels", LOG])
def test_a_window_whose_run_was_killed_half_way_is_due_again(new_shop, instance, table):
    new_shop.land(date(2023, 2, 1))
    new_shop.tables.write("customer_features", rows(x=1), WINDOWS[0])
    new_shop.tables.write(table, rows(x=1), WINDOWS[0])
    assert Tick(new_shop, "landing_sensor", instance).asked == [(PREPARE, WINDOWS[0])]


def test_once_there_is_a_champion_a_window_gets_its_whole_cycle(shop, instance):
    processed(shop, JUNE, watched=True)
    shop.land(date(2023, 8, 1))
    assert Tick(shop, "landing_sensor", instance).asked == [(CYCLE, "2023-07-01")]


@pytest.mark.parametrize("missing", ["drift_report", "model_performance"])
def test_a_cycle_that_stopped_before_its_monitoring_is_due_again(shop, instance, missing):
    processed(shop, MAY, watched=True)
    for table in {"churn_scores", "drift_report", "model_performance"} - {missing}:
        shop.tables.write(table, rows(x=1), JUNE)
    assert Tick(shop, "landing_sensor", instance).asked == [(CYCLE, JUNE)]


def test_windows_from_before_the_first_scores_need_none(shop, instance):
    processed(shop, JUNE, watched=True)
    assert Tick(shop, "landing_sensor", instance).asked == []


def test_a_first_champion_that_has_not_scored_yet_scores_the_newest_window(shop, instance):
    assert Tick(shop, "landing_sensor", instance).asked == [(SCORE, JUNE)]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
def test_while_a_window_is_processed_nothing_more_is_asked_for(new_shop, instance, status):
    new_shop.land(date(2023, 3, 1))
    run = create_run_for_test(instance, job_name=PREPARE, status=status, tags={WINDOW: WINDOWS[0]})
    tick = Tick(new_shop, "landing_sensor", instance)
    assert tick.asked == []
    assert tick.skipped == f"window {WINDOWS[0]} is being processed in run {run.run_id}"


def test_a_window_that_failed_is_explained_and_holds_up_the_later_ones(new_shop, instance):
    new_shop.land(date(2023, 3, 1))
    run = create_run_for_test(instance, job_name=PREPARE, status=dg.DagsterRunStatus.FAILURE, tags={WINDOW: WINDOWS[0]})
    tick = Tick(new_shop, "landing_sensor", instance)
    assert tick.asked == []
    assert f"window {WINDOWS[0]} was not finished by run {run.run_id} (FAILURE)" in tick.skipped
    assert "later windows wait" in tick.skipped
    assert "daily_cycle" not in tick.skipped  # which prepares nothing


def test_a_retrain_that_is_about_the_same_window_does_not_hide_the_windows_own_run(shop, instance):
    processed(shop, MAY, watched=True)
    shop.tables.write("churn_scores", rows(x=1), JUNE)
    own = create_run_for_test(instance, job_name=CYCLE, status=dg.DagsterRunStatus.FAILURE, tags={WINDOW: JUNE})
    create_run_for_test(instance, job_name=RETRAIN, status=dg.DagsterRunStatus.STARTED, tags={WINDOW: JUNE})
    tick = Tick(shop, "landing_sensor", instance)
    assert tick.asked == []
    assert f"was not finished by run {own.run_id} (FAILURE)" in tick.skipped


def test_a_source_that_cannot_be_read_is_a_reason_to_wait_and_no_crash(new_shop, instance):
    class Away:
        def watermark(self, con):
            raise SourceError("the bucket is not to be reached")

    tick = Tick(new_shop, "landing_sensor", instance, source=Away())
    assert tick.asked == []
    assert tick.skipped == "the bucket is not to be reached"


# -- the first model


def labelled(shop, windows: int) -> None:
    table = pa.Table.from_pandas(graph.labelled(5, windows)[["buyer", "snapshot_time", "label_matured_at", "churned"]])
    shop.tables.write("churn_labels", table, WINDOWS[windows])


def test_the_first_model_waits_for_enough_labels(new_shop, instance):
    assert Tick(new_shop, "first_model_sensor", instance).skipped
    labelled(new_shop, 2)
    assert Tick(new_shop, "first_model_sensor", instance).asked == []
    labelled(new_shop, 3)
    tick = Tick(new_shop, "first_model_sensor", instance)
    assert len(tick.requests) == 1
    assert tick.requests[0].tags[REASON] == "there is no champion yet"


def test_after_a_first_model_that_was_refused_new_labels_ask_again(new_shop, instance):
    labelled(new_shop, 3)
    first = Tick(new_shop, "first_model_sensor", instance).requests[0].run_key
    assert Tick(new_shop, "first_model_sensor", instance).requests[0].run_key == first
    labelled(new_shop, 4)
    assert Tick(new_shop, "first_model_sensor", instance).requests[0].run_key != first


def test_while_a_first_model_is_trained_no_other_is_asked_for(new_shop, instance):
    labelled(new_shop, 3)
    run = create_run_for_test(instance, job_name=RETRAIN, status=dg.DagsterRunStatus.STARTED)
    assert run.run_id in Tick(new_shop, "first_model_sensor", instance).skipped


def test_with_a_champion_there_is_no_first_model(shop, instance):
    assert Tick(shop, "first_model_sensor", instance).skipped == "there is a champion"


# -- drift and performance


def report(instance, key: str, drifted: bool | None, model: str | None = "1", asset: str = "drift_report") -> None:
    name = "drifted" if asset == "drift_report" else "drop"
    said = {} if drifted is None else {name: drifted}
    about = {} if model is None else {"model_version": model}
    instance.report_runless_asset_event(
        dg.AssetMaterialization(asset_key=asset, partition=key, metadata={**said, **about})
    )


def test_drift_asks_for_a_retrain_and_says_why(shop, instance):
    report(instance, JUNE, True)
    tick = Tick(shop, "drift_sensor", instance)
    assert tick.asked == [(None, None)]
    assert tick.requests[0].run_key == f"retrain:{JUNE}"
    assert tick.requests[0].tags[REASON] == f"1 of the last 1 windows drifted ({JUNE})"
    assert tick.requests[0].tags[WINDOW] == JUNE
    assert tick.cursor == JUNE


def test_no_drift_asks_for_nothing_and_is_remembered(shop, instance):
    report(instance, JUNE, False)
    tick = Tick(shop, "drift_sensor", instance)
    assert tick.asked == []
    assert "0 of the last 1 windows drifted" in tick.skipped
    assert tick.cursor == JUNE


@pytest.mark.parametrize("cursor", [None, "2023-03-01"])
def test_every_report_after_the_cursor_is_seen_though_the_last_one_says_nothing(shop, instance, cursor):
    """Drift of .5, .6 and 0 between two ticks: a sensor that looks at the last event only would skip."""
    for key, drifted in ((APRIL, True), (MAY, True), (JUNE, False)):
        report(instance, key, drifted)
    tick = Tick(shop.other(AT_ONCE), "drift_sensor", instance, cursor)
    assert len(tick.requests) == 1
    assert tick.requests[0].tags[WINDOW] == APRIL
    assert tick.cursor == JUNE
    after = Tick(shop.other(AT_ONCE), "drift_sensor", instance, tick.cursor)
    assert after.asked == []
    assert after.skipped == f"nothing new since window {JUNE}"


def test_n_of_m_counts_reports_on_both_sides_of_the_cursor(shop, instance):
    two_of_three = shop.other((POLICY, "retraining: {drifted_windows: 2, of_last: 3, cooldown_windows: 0}"))
    report(instance, APRIL, True)
    first = Tick(two_of_three, "drift_sensor", instance)
    assert first.asked == []
    report(instance, MAY, False)
    second = Tick(two_of_three, "drift_sensor", instance, first.cursor)
    assert second.asked == []
    report(instance, JUNE, True)
    third = Tick(two_of_three, "drift_sensor", instance, second.cursor)
    assert [request.tags[WINDOW] for request in third.requests] == [JUNE]


def test_a_report_on_a_model_that_is_champion_no_more_counts_for_nothing(shop, instance):
    report(instance, JUNE, True)
    registered(shop, APRIL)
    tick = Tick(shop.other(AT_ONCE), "drift_sensor", instance)
    assert tick.asked == []
    assert tick.skipped == "no report yet"


def test_the_newest_report_on_a_window_counts(shop, instance):
    report(instance, JUNE, True)
    report(instance, JUNE, False)
    assert Tick(shop, "drift_sensor", instance).asked == []


@pytest.mark.parametrize(("drifted", "model"), [(None, "1"), (True, None)])
def test_a_report_without_a_verdict_or_a_model_is_passed_over(shop, instance, drifted, model):
    report(instance, JUNE, drifted, model)
    assert Tick(shop, "drift_sensor", instance).skipped == "no report yet"


@pytest.mark.parametrize("trained", [MAY, JUNE])
def test_within_the_cooldown_drift_asks_for_nothing(shop, instance, trained):
    registered(shop, trained, champion=False)
    report(instance, JUNE, True)
    tick = Tick(shop, "drift_sensor", instance)
    assert tick.asked == []
    assert "but " in tick.skipped
    assert tick.cursor == JUNE


def test_a_spent_budget_asks_for_nothing(shop, instance):
    for _ in range(2):
        registered(shop, WINDOWS[2], champion=False)
    report(instance, JUNE, True)
    assert "used up the budget" in Tick(shop, "drift_sensor", instance).skipped


def test_a_sensor_that_was_off_for_long_asks_for_one_run(shop, instance):
    for key in (APRIL, MAY, JUNE):
        report(instance, key, True)
    assert len(Tick(shop.other(AT_ONCE), "drift_sensor", instance).requests) == 1


def test_what_was_decided_at_the_time_is_decided_the_same_later(shop, instance):
    """Drift in the cooldown, and none after it: late or in time, no retrain."""
    report(instance, APRIL, True)  # a window after March, and the cooldown is two
    in_time = Tick(shop, "drift_sensor", instance)
    for key in (MAY, JUNE):
        report(instance, key, False)
    assert in_time.asked == []
    assert Tick(shop, "drift_sensor", instance).asked == []


def test_drift_that_a_later_training_has_seen_is_no_reason_any_more(shop, instance):
    report(instance, MAY, True)
    registered(shop, JUNE, champion=False)
    assert "a model was trained as of 2023-06-01 already" in Tick(shop, "drift_sensor", instance).skipped


def test_a_retrain_under_way_is_waited_for_and_the_report_is_judged_after_it(shop, instance):
    report(instance, JUNE, True)
    run = create_run_for_test(instance, job_name=RETRAIN, status=dg.DagsterRunStatus.STARTED)
    tick = Tick(shop, "drift_sensor", instance, MAY)
    assert tick.asked == []
    assert run.run_id in tick.skipped
    assert tick.cursor in (None, MAY)  # not moved on
    instance.report_run_failed(run)
    assert len(Tick(shop, "drift_sensor", instance, MAY).requests) == 1


def test_drift_and_performance_together_ask_for_one_retrain(shop, instance):
    report(instance, JUNE, True)
    report(instance, JUNE, 0.2, asset="model_performance")
    asked = Tick(shop, "drift_sensor", instance).requests
    assert len(asked) == 1
    create_run_for_test(instance, job_name=RETRAIN, status=dg.DagsterRunStatus.STARTING, tags=asked[0].tags)
    assert Tick(shop, "performance_sensor", instance).asked == []


@pytest.mark.parametrize(("drop", "asked"), [(0.05, 0), (0.06, 1), (-0.3, 0)])
def test_fallen_performance_asks_for_a_retrain_beyond_what_the_contract_bears(shop, instance, drop, asked):
    report(instance, JUNE, drop, asset="model_performance")
    tick = Tick(shop, "performance_sensor", instance)
    assert len(tick.requests) == asked
    assert tick.cursor == JUNE


def test_drift_is_not_the_performance_sensors_business_nor_the_reverse(shop, instance):
    report(instance, JUNE, True)
    assert Tick(shop, "performance_sensor", instance).skipped == "no report yet"
    report(instance, MAY, 0.5, asset="model_performance")
    assert Tick(shop, "drift_sensor", instance, JUNE).asked == []


@pytest.mark.parametrize("sensor", ["drift_sensor", "performance_sensor"])
def test_without_a_champion_there_is_nothing_to_retrain(new_shop, instance, sensor):
    report(instance, JUNE, True)
    report(instance, JUNE, 0.5, asset="model_performance")
    assert Tick(new_shop, sensor, instance).skipped == "there is no champion that could be retrained"


def test_more_reports_than_a_page_holds_are_all_read(shop, instance, monkeypatch):
    fetch = instance.fetch_materializations
    monkeypatch.setattr(instance, "fetch_materializations", lambda *a, **o: fetch(*a, **{**o, "limit": 2}))
    for key in WINDOWS[1:]:
        report(instance, key, key == MAY)
    assert state.verdicts(instance, "drift_report", "drifted", "1") == {key: key == MAY for key in WINDOWS[1:]}

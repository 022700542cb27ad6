"""The whole loop on real data, as a user runs it: `churn up`, calls to the endpoint, the next month, `churn down`.

Nothing is mocked: real Dagster processes, a real MLflow registry, a real Feast store, the real service. The tests of
this module share one platform and go through its life in order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from churn_platform import local
from churn_platform.contract import Contract
from churn_platform.contract_file import load
from churn_platform.registered import CHAMPION
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.settings import PROJECT, Settings
from churn_platform_tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

PRESENT = "2017-09-01"  # the newest window of the history that `churn up` plays
NEXT = "2017-10-01"
PORTS = ("DAGSTER", "SERVING", "REPORTS")


@dataclass(frozen=True)
class Platform:
    """A platform that was brought up by the command line, and what `churn up` printed."""

    home: Path
    environment: dict[str, str]
    printed: str
    contract: Contract

    @property
    def settings(self) -> Settings:
        ports = {f"{name.lower()}_port": self.port(name) for name in PORTS}
        return Settings(home=self.home, **ports)

    def port(self, service: str) -> int:
        return int(self.environment[f"CHURN_{service}_PORT"])

    @property
    def tables(self) -> TableStore:
        return TableStore(self.settings.tables_of(self.contract))

    @property
    def tracking(self) -> Tracking:
        return Tracking(self.contract, self.settings)

    def churn(self, *arguments: str, seconds: float = 400) -> subprocess.CompletedProcess[str]:
        return run_churn(self.environment, *arguments, seconds=seconds)

    def post(self, body: object) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port('SERVING')}/predict", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home / "dagster" / self.contract.name))


def run_churn(environment: dict[str, str], *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "churn_platform.cli", *arguments],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHURN_", "DAGSTER_"))}
    environment = kept | {
        "CHURN_HOME": str(home),
        **{f"CHURN_{name}_PORT": str(free_port()) for name in PORTS},
        "CHURN_SERVING_REFRESH_SECONDS": "1",
        "BENTOML_HOME": str(home / "bentoml"),
    }
    try:
        outcome = run_churn(environment, "up", seconds=400)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        yield Platform(home, environment, outcome.stdout, load(PROJECT / "contract.yaml"))
    finally:
        run_churn(environment, "down", seconds=90)


def wait_for(what: str, done: Any, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = done()
        if found:
            return found
        time.sleep(1)
    raise AssertionError(f"{what} did not happen in {seconds:.0f} s")


def runs(platform: Platform, job: str) -> list[dg.DagsterRun]:
    with platform.instance() as instance:
        return list(instance.get_runs(dg.RunsFilter(job_name=job)))


def test_up_prints_the_notice_of_the_data_and_a_call_to_try(platform: Platform) -> None:
    assert "educational" in platform.printed
    assert f"http://127.0.0.1:{platform.port('SERVING')}/predict" in platform.printed


def test_every_table_holds_every_window_of_the_history(platform: Platform) -> None:
    for table in ("raw_transactions", "validated_transactions", "customer_features", "churn_labels"):
        windows = platform.tables.windows(table)
        assert windows[0] == "2017-01-01"
        assert windows[-1] == PRESENT
        assert len(windows) == 9


def test_the_champion_has_passed_every_gate_and_stands_in_the_promotion_log(platform: Platform) -> None:
    from churn_platform.engine import connection
    from churn_platform.ml import gates

    version = platform.tracking.version_of(CHAMPION)
    assert version is not None
    verdicts = platform.tracking.verdicts(version)
    assert verdicts == dict.fromkeys(gates.names(platform.contract), True)
    with connection() as con:
        platform.tables.read(con, "promotion_log")
        assert con.execute("SELECT version FROM promotion_log").fetchall() == [(str(version.version),)]


def test_the_report_of_a_window_is_a_click_away(platform: Platform) -> None:
    validated = dg.AssetKey("validated_transactions")
    with platform.instance() as instance:
        event = instance.get_latest_materialization_event(validated)
    assert event is not None
    assert event.asset_materialization is not None
    url = event.asset_materialization.metadata["report"].value
    assert isinstance(url, str)
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert b"<html" in answer.read()


def test_the_endpoint_answers_for_customers_with_what_was_computed_for_them(platform: Platform) -> None:
    from churn_platform.engine import connection

    with connection() as con:
        platform.tables.read(con, "customer_features", [PRESENT])
        platform.tables.read(con, "churn_scores", [PRESENT])
        rows = con.execute(
            "SELECT household_id, recency_days, age, s.churn_probability, s.prediction FROM customer_features f "
            "JOIN churn_scores s USING (household_id, snapshot_time) ORDER BY hash(household_id) LIMIT 20"
        ).fetchall()
    assert len(rows) == 20
    for customer, recency, age, probability, prediction in rows:
        status, answer = platform.post({"user_id": customer})
        assert status == 200
        assert answer["user_id"] == customer
        assert answer["features"]["recency_days"] == recency
        assert answer["features"]["age"] == age
        assert answer["churn_probability"] == pytest.approx(probability, abs=1e-12)  # batch and online agree
        assert answer["prediction"] == prediction
        assert answer["feature_timestamp"] == "2017-10-01T00:00:00Z"
        assert set(answer["features"]) == set(platform.contract.feature_names)


def test_the_endpoint_refuses_what_it_cannot_answer(platform: Platform) -> None:
    refused = [
        ({"user_id": "nobody"}, 404),
        ({"user": 1}, 422),
        ({}, 422),
        (b"not json", 422),
        ({"user_id": True}, 422),
    ]
    for body, expected in refused:
        status, answer = platform.post(body)
        assert (status, bool(answer["error"]["message"])) == (expected, True), body


def test_playing_again_changes_nothing(platform: Platform) -> None:
    before = {name: platform.tables.version(name) for name in ("raw_transactions", "customer_features", "churn_scores")}
    outcome = platform.churn("play")
    assert outcome.returncode == 0
    assert "processed already" in outcome.stdout
    assert before == {name: platform.tables.version(name) for name in before}


@pytest.fixture(scope="module")
def after_next_month(platform: Platform) -> Platform:
    """One month more of raw data has landed, and nobody has done anything else."""
    outcome = platform.churn("land")
    assert outcome.returncode == 0, outcome.stderr
    return platform


def test_the_next_month_is_carried_through_by_the_running_daemon(after_next_month: Platform) -> None:
    def cycled() -> bool:
        return NEXT in after_next_month.tables.windows("model_performance")

    wait_for("the cycle of the next window", cycled, 150)
    (cycle,) = [run for run in runs(after_next_month, "window_cycle") if run.tags.get("dagster/partition") == NEXT]
    assert cycle.tags["dagster/sensor_name"] == "landing_sensor"
    for table in ("validated_transactions", "customer_features", "churn_scores", "drift_report"):
        assert NEXT in after_next_month.tables.windows(table)


def test_the_drift_sensor_launches_a_run_that_materializes_the_model(after_next_month: Platform) -> None:
    def retrained() -> list[dg.DagsterRun]:
        launched = [r for r in runs(after_next_month, "retrain") if r.tags.get("dagster/sensor_name") == "drift_sensor"]
        return [run for run in launched if run.is_finished]

    (run,) = wait_for("a retrain by the drift sensor", retrained, 180)
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert "windows drifted" in run.tags["churn/reason"]
    with after_next_month.instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("candidate_model"))
        assert event is not None
        assert event.run_id == run.run_id
        ticks = [
            tick
            for state in instance.all_instigator_state()
            if state.instigator_name == "drift_sensor"
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
            if run.run_id in tick.run_ids
        ]
        assert len(ticks) == 1


def test_the_running_service_takes_up_the_new_champion(after_next_month: Platform) -> None:
    champion = after_next_month.tracking.version_of(CHAMPION)
    assert champion is not None
    assert str(champion.version) == "2"

    def served() -> bool:
        status, answer = after_next_month.post({"user_id": "1"})
        return (
            status == 200 and answer["model_version"] == "2" and answer["feature_timestamp"] == "2017-11-01T00:00:00Z"
        )

    assert wait_for("the new champion in the service", served, 30)


def test_down_stops_every_process(after_next_month: Platform) -> None:
    assert after_next_month.churn("down").returncode == 0
    settings = after_next_month.settings
    for service in local.services(settings):
        assert local.pid_of(service.name, settings) is None
        assert not local.answers(service.url + service.ready)
    left = subprocess.run(["pgrep", "-f", str(after_next_month.home)], capture_output=True, text=True, check=False)
    assert left.stdout == ""

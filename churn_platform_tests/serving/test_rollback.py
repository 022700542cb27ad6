"""`churn rollback` while the service runs: the registry changes, and so does who answers, with no answer lost."""

from __future__ import annotations

import json
import threading

import pytest
from typer.testing import CliRunner

from churn_platform import local, promotion
from churn_platform.cli import app
from churn_platform.resources.storage import TableStore
from churn_platform_tests import graph
from churn_platform_tests.serving.running import Server


@pytest.fixture
def world(make_world, monkeypatch):
    """Two champions, one after the other, that the log knows of."""
    found = make_world()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(found.settings.home))
    graph.forget()
    found.bring_features_online()
    for seed in (0, 1):
        version = str(found.promote(seed).version)
        # the test's own way past the log is entered as what it is
        promotion.promote(TableStore(found.settings.tables_of(found.contract)), found.tracking, version, "the test")
    yield found
    graph.forget()


def test_a_rollback_reaches_the_running_service_within_seconds_and_loses_no_answer(world, tmp_path, monkeypatch):
    server = Server(world, tmp_path)
    asking, statuses, versions = threading.Event(), [], []

    def ask():
        while not asking.is_set():
            answer = server.predict()
            statuses.append(answer.status_code)
            versions.append(answer.json().get("model_version"))

    try:
        server.wait_for_champion(2)
        note = local._pidfile("serving", world.settings)  # as `churn up` leaves it
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"pid": server.process.pid, "started": local.started(server.process.pid)}))
        monkeypatch.setenv("CHURN_SERVING_PORT", server.url.rsplit(":", 1)[1])
        graph.forget()
        asker = threading.Thread(target=ask)
        asker.start()
        done = CliRunner().invoke(app, ["rollback", "--why", "complaints"])
        asking.set()
        asker.join(30)
        assert done.exit_code == 0, done.output
        assert "version 1 is champion again, after version 2" in done.output
        assert f"the endpoint at {server.url} answers by it" in done.output
        assert server.predict().json()["model_version"] == "1"
        assert server.get("/model").json()["version"] == "1"
    finally:
        asking.set()
        server.stop()
    assert set(statuses) == {200}
    changed = versions.index("1") if "1" in versions else len(versions)
    assert versions == ["2"] * changed + ["1"] * (len(versions) - changed)

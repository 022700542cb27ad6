"""Processes on one machine: started once, found again, stopped whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from churn_platform import local
from churn_platform.contract_file import load
from churn_platform.resources.reports import Reports
from churn_platform.settings import PROJECT, Settings
from churn_platform_tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACT = load(PROJECT / "contract.yaml")

# a web server that has a child of its own, as Dagster's and BentoML's processes have
SERVER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = Settings(home=tmp_path)
    before = dict(os.environ)
    local.prepare(settings, CONTRACT)
    yield settings
    local.stop("dummy", settings)
    os.environ.clear()
    os.environ.update(before)


def test_what_was_started_is_known_whatever_is_set_since(settings: Settings) -> None:
    local.start(dummy(), settings, CONTRACT)
    assert local.known(settings) == ["dummy"]
    local.stop("dummy", settings)
    assert local.known(settings) == []


def test_a_service_whose_settings_have_changed_is_started_again(settings: Settings) -> None:
    service = dummy()
    local.start(service, settings, CONTRACT)
    assert not local.start(service, settings, CONTRACT)
    assert local.start(service, settings.model_copy(update={"reports_port": 9000}), CONTRACT)


def test_the_reports_in_home_are_served_and_others_are_not(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"reports": "s3://bucket/reports"})
    assert "reports" not in [service.name for service in local.services(elsewhere)]
    port = free_port()
    settings = settings.model_copy(update={"reports_port": port})
    (service,) = (service for service in local.services(settings) if service.name == "reports")
    kept = Reports(CONTRACT, settings).keep("drift.html", "a page")
    assert kept.url is not None
    local.start(service, settings, CONTRACT)
    try:
        local.wait(service, settings)
        with urllib.request.urlopen(kept.url, timeout=5) as answer:
            assert answer.read() == b"a page"
    finally:
        local.stop("reports", settings)


def dummy(code: str = SERVER) -> local.Service:
    port = free_port()
    return local.Service("dummy", [sys.executable, "-c", code, str(port)], port, "/", 20)


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-g", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def test_the_home_gets_the_projects_dagster_yaml(settings: Settings) -> None:
    assert Path(os.environ["DAGSTER_HOME"]) == settings.home / "dagster" / CONTRACT.name
    assert (Path(os.environ["DAGSTER_HOME"]) / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()


@pytest.mark.slow
def test_a_service_is_started_once_and_stopped_with_its_children(settings: Settings) -> None:
    service = dummy()
    assert local.start(service, settings, CONTRACT)
    local.wait(service, settings)
    pid = local.pid_of("dummy", settings)
    assert pid is not None
    assert not local.start(service, settings, CONTRACT)
    assert local.pid_of("dummy", settings) == pid
    assert len(children(pid)) == 2
    assert local.stop("dummy", settings)
    assert children(pid) == []
    assert local.pid_of("dummy", settings) is None
    assert not local.stop("dummy", settings)


@pytest.mark.slow
def test_a_changed_contract_starts_a_service_again(settings: Settings) -> None:
    service = dummy()
    local.start(service, settings, CONTRACT)
    local.wait(service, settings)
    pid = local.pid_of("dummy", settings)
    changed = CONTRACT.model_copy(update={"name": "other"})
    changed.__dict__.pop("fingerprint", None)
    assert local.start(service, settings, changed)
    assert local.pid_of("dummy", settings) not in (None, pid)


def test_a_port_that_somebody_else_holds_is_said_with_the_variable_to_set(settings: Settings) -> None:
    service = dummy()
    with socket.socket() as other:
        other.bind(("127.0.0.1", service.port))
        other.listen()
        with pytest.raises(local.LocalError, match=rf"port {service.port} is taken.*CHURN_DUMMY_PORT"):
            local.start(service, settings, CONTRACT)


def test_a_service_that_dies_at_the_start_shows_the_end_of_its_log(settings: Settings) -> None:
    service = dummy("raise SystemExit('the reason why')")
    local.start(service, settings, CONTRACT)
    with pytest.raises(local.LocalError, match="the reason why"):
        local.wait(service, settings)


@pytest.mark.slow
def test_a_pid_that_another_program_got_since_is_not_taken_for_the_service(settings: Settings) -> None:
    service = dummy()
    local.start(service, settings, CONTRACT)
    local.wait(service, settings)
    pid = local.pid_of("dummy", settings)
    assert pid is not None
    record = settings.home / "run" / "dummy.json"
    text = record.read_text()
    local.stop("dummy", settings)
    record.write_text(text.replace(f'"pid": {pid}', f'"pid": {os.getpid()}'))
    assert local.pid_of("dummy", settings) is None
    assert not local.stop("dummy", settings)  # and this test is still alive


def test_a_service_that_ignores_the_kind_signal_is_killed(settings: Settings) -> None:
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SERVER}"
    service = dummy(stubborn)
    local.start(service, settings, CONTRACT)
    local.wait(service, settings)
    pid = local.pid_of("dummy", settings)
    assert pid is not None
    began = time.monotonic()
    assert local.stop("dummy", settings, patience=1.0)
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)

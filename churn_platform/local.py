"""The platform on one machine: its home, and the processes that `churn up` starts and `churn down` stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from churn_platform.settings import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from churn_platform.contract import Contract
    from churn_platform.settings import Settings


class LocalError(RuntimeError):
    """The platform cannot be started or stopped here; the message says why."""


_STARTED: list[subprocess.Popen[bytes]] = []  # they outlive us; a Popen that is dropped while it runs complains


@dataclass(frozen=True)
class Service:
    """A process of the platform. `ready` is the path that answers 200 once it is."""

    name: str
    command: list[str]
    port: int
    ready: str
    wait_seconds: float

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


def services(settings: Settings) -> list[Service]:
    """What runs: Dagster (web server, daemon, code location), the endpoint, and a server of the reports in home."""
    python = sys.executable
    dagster = [python, "-m", "dagster", "dev", "--workspace", str(PROJECT / "workspace.yaml")]
    bento = [python, "-m", "bentoml", "serve", "serving.service:ChurnService", "--host", "127.0.0.1"]
    found = [
        Service(
            "dagster", [*dagster, "--port", str(settings.dagster_port)], settings.dagster_port, "/server_info", 120
        ),
        Service("serving", [*bento, "--port", str(settings.serving_port)], settings.serving_port, "/readyz", 120),
    ]
    if settings.reports is None:
        files = [python, "-m", "http.server", "--bind", "127.0.0.1", "--directory", settings.reports_folder]
        found.append(Service("reports", [*files, str(settings.reports_port)], settings.reports_port, "/", 30))
    return found


def prepare(settings: Settings, contract: Contract) -> None:
    """Make the home, and let this process and its children find the contract's Dagster instance in it."""
    home = settings.home / "dagster" / contract.name
    for folder in (home, settings.home / "logs", settings.home / "run"):
        folder.mkdir(parents=True, exist_ok=True)
    if settings.reports is None:
        (settings.home / "reports").mkdir(exist_ok=True)
    link = home / "dagster.yaml"
    if "DAGSTER_HOME" not in os.environ:
        if not link.is_symlink() or link.readlink() != PROJECT / "dagster.yaml":
            link.unlink(missing_ok=True)
            link.symlink_to(PROJECT / "dagster.yaml")
        os.environ["DAGSTER_HOME"] = str(home)
    os.environ["CHURN_HOME"] = str(settings.home)
    os.environ["CHURN_CONTRACT"] = str(settings.contract)


def start(service: Service, settings: Settings, contract: Contract) -> bool:
    """Start a process in the background; returns False if it runs already.

    One that was started with another contract, another state of it, or other settings is started again.

    Raises:
        LocalError: another program holds the port.
    """
    # what runs write into Dagster's log links to the reports
    under = {"contract": contract.fingerprint, "command": service.command, "reports": settings.reports_server}
    running = _record(service.name, settings)
    if running is not None:
        if all(running.get(key) == value for key, value in under.items()):
            return False
        stop(service.name, settings)
    require_port(service, settings)
    with (settings.home / "logs" / f"{service.name}.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 (our own commands)
            service.command, cwd=PROJECT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    _STARTED.append(process)
    record = {"pid": process.pid, "started": started(process.pid), **under}
    _pidfile(service.name, settings).write_text(json.dumps(record))
    return True


def require_port(service: Service, settings: Settings) -> None:
    """See to it that a service that does not run yet finds its port free.

    Raises:
        LocalError: another program holds it.
    """
    if pid_of(service.name, settings) is not None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", service.port))
        except OSError:
            variable = f"CHURN_{service.name.upper()}_PORT"
            raise LocalError(
                f"port {service.port} is taken by another program. Choose another: {variable}=... make up"
            ) from None


def wait(service: Service, settings: Settings) -> float:
    """Wait until a service answers; returns the seconds that it took.

    Raises:
        LocalError: it died or did not answer in time; the end of its log is in the message.
    """
    began = time.monotonic()
    while time.monotonic() - began < service.wait_seconds:
        if pid_of(service.name, settings) is None:
            raise LocalError(f"{service.name} stopped while starting:\n{_tail(service, settings)}")
        if answers(service.url + service.ready):
            return time.monotonic() - began
        time.sleep(0.2)
    raise LocalError(f"{service.name} did not answer in {service.wait_seconds:.0f} s:\n{_tail(service, settings)}")


def answers(url: str) -> bool:
    """Whether a URL answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop(name: str, settings: Settings, patience: float = 20.0) -> bool:
    """Stop a process and its children, kindly first; returns False if it did not run."""
    pid = pid_of(name, settings)
    if pid is None:
        _pidfile(name, settings).unlink(missing_ok=True)
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            break
        if _gone(pid, patience):
            break
    _pidfile(name, settings).unlink(missing_ok=True)
    return True


def known(settings: Settings) -> list[str]:
    """The names of all services that were started and not stopped, by whatever settings; the last one first."""
    files = (settings.home / "run").glob("*.json")
    return [path.stem for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)]


def pid_of(name: str, settings: Settings) -> int | None:
    """The process id of a service that runs, or None."""
    record = _record(name, settings)
    return None if record is None else int(record["pid"])


def _record(name: str, settings: Settings) -> dict[str, Any] | None:
    """What was noted of a service when it was started, if it still runs; a pid that is another's by now is not it."""
    try:
        record: dict[str, Any] = json.loads(_pidfile(name, settings).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if started(int(record["pid"])) == record["started"] else None


def follow(settings: Settings, say: Callable[[str], None]) -> None:
    """Say what runs, and where."""
    for service in services(settings):
        pid = pid_of(service.name, settings)
        if pid is None:
            say(f"  {service.name:<8} stopped")
        else:
            state = "ready" if answers(service.url + service.ready) else "not ready"
            say(f"  {service.name:<8} {state} at {service.url} (pid {pid}, log {_log(service, settings)})")


def _pidfile(name: str, settings: Settings) -> Path:
    return settings.home / "run" / f"{name}.json"


def _log(service: Service, settings: Settings) -> Path:
    return settings.home / "logs" / f"{service.name}.log"


def started(pid: int) -> str | None:
    """When a process began, in the kernel's clock ticks; None where it does not run (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _gone(group: int, patience: float) -> bool:
    began = time.monotonic()
    while time.monotonic() - began < patience:
        for process in _STARTED:
            process.poll()  # a child of this very process would stay as a zombie
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _tail(service: Service, settings: Settings, lines: int = 25) -> str:
    text = _log(service, settings).read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"  {line}" for line in text)

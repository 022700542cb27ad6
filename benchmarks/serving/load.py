"""The load: wrk, which keeps connections alive and has one request in flight on each, as fast as they are answered."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("wrk.lua")
_MARK = "measured "
_PATIENCE = 60  # seconds after which a request without an answer is an error


class LoadError(RuntimeError):
    """The load could not be generated."""


@dataclass(frozen=True)
class Load:
    """What a load met.

    Attributes:
        seconds: how long it lasted.
        requests: answers that arrived, errors among them.
        p50_ms: median latency in milliseconds.
        p99_ms: 99th percentile of latency in milliseconds.
        max_ms: the longest latency in milliseconds.
        errors: by kind: connect, read, write, timeout, status (an answer that is not 2xx or 3xx).
    """

    seconds: float
    requests: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: dict[str, int]

    @property
    def failed(self) -> int:
        """Errors of all kinds."""
        return sum(self.errors.values())

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return (self.requests - self.errors["status"]) / self.seconds


def require_wrk() -> str:
    """The path of wrk. Raises LoadError, with how to install it, where there is none."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadError(
            "wrk is missing, the load generator: run scripts/install_bench_tools.sh (Debian's package wrk)."
        )
    return found


def apply(url: str, bodies: Path | None, *, concurrency: int, seconds: int, offset: int = 0) -> Load:
    """Post bodies to a URL from `concurrency` connections for some seconds.

    Args:
        url: on this machine.
        bodies: a file with one JSON body a line; sent in its order, again from the start when it ends. None: GET.
        concurrency: connections, each with one request in flight.
        seconds: how long.
        offset: how many lines to begin after.

    Raises:
        LoadError: wrk is missing or failed.
    """
    command = [require_wrk(), "--threads", "1", "--connections", str(concurrency), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{_PATIENCE}s", "--script", str(_SCRIPT), url]
    if bodies is not None:
        command += ["--", str(bodies), str(offset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own script
    if done.returncode:
        raise LoadError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    return parse(done.stdout)


def parse(output: str) -> Load:
    """What wrk.lua printed. Raises LoadError where it printed nothing."""
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    if not lines:
        raise LoadError(f"wrk said nothing of what it measured: {output.strip()[-300:]}")
    values: dict[str, Any] = json.loads(lines[-1].removeprefix(_MARK))
    return Load(**values)

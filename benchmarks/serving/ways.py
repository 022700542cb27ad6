"""The services that are compared: how each is started, asked and measured while it runs."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.serving.world import Paths

_TICKS = os.sysconf("SC_CLK_TCK")
_LONGEST_START = 120.0  # seconds
_LOOK_EVERY = 0.02  # seconds between looks at a service that starts
_QUIET = 0.05  # of a core: a service that takes less has nothing left to do
_LONGEST_SETTLING = 20.0  # seconds


class ServiceError(RuntimeError):
    """A service did not start, or answered what it should not."""


@dataclass(frozen=True)
class Way:
    """One way of serving the model.

    Attributes:
        name: what it is called in the report.
        title: what it is.
        command: starts it on a port, in the foreground, with one worker.
        path: what takes a prediction.
        bodies: which bodies it takes: see `world.Paths.bodies`.
        probability: finds P(churn) in an answer.
        ready: answers 200 when it is ready to serve; None where there is no such path.
    """

    name: str
    title: str
    command: Callable[[Paths, int], list[str]]
    path: str
    bodies: str
    probability: Callable[[Any], float]
    ready: str | None = None


def _module(*words: str) -> list[str]:
    return [sys.executable, "-m", *words, "--host", "127.0.0.1", "--port"]


def _of_one(answer: Any) -> float:
    return float(answer["churn_probability"])


# uvicorn takes uvloop and httptools by itself, as they are installed. None of the ways writes an access log.
REFERENCE = Way(
    "reference",
    "the specification's service: FastAPI, Feast, scikit-learn",
    lambda _, port: [*_module("uvicorn", "benchmarks.serving.reference:app", "--no-access-log"), str(port)],
    "/predict",
    "customer",
    _of_one,
)
MLFLOW = Way(
    "mlflow",
    "`mlflow models serve`; the features come with the request",
    lambda paths, port: [
        *_module(
            "mlflow", "models", "serve", "--env-manager", "local", "--workers", "1", "-m", str(paths.mlflow_model)
        ),
        str(port),
    ],
    "/invocations",
    "features",
    lambda answer: float(answer["predictions"][0][1]),
    ready="/ping",
)
PLAIN = Way(
    "bentoml",
    "BentoML around the specification's code",
    lambda _, port: [*_module("bentoml", "serve", "benchmarks.serving.plain:PlainService"), str(port)],
    "/predict",
    "customer",
    _of_one,
    ready="/readyz",
)
OURS = Way(
    "ours",
    "the platform's endpoint",
    lambda _, port: [*_module("bentoml", "serve", "serving.service:ChurnService"), str(port)],
    "/predict",
    "customer",
    _of_one,
    ready="/readyz",
)
WAYS = {way.name: way for way in (REFERENCE, MLFLOW, PLAIN, OURS)}


def environment(paths: Paths, redis: str | None) -> dict[str, str]:
    """What every process of the benchmark is told: the same for all ways, and one thread for each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHURN_")}
    kept |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "BENCH_SERVING_FOLDER": str(paths.folder),
        "CHURN_HOME": str(paths.home),
        "CHURN_CONTRACT": str(paths.contract),
        "BENTOML_HOME": str(paths.folder / "bentoml"),
        "UVICORN_ACCESS_LOG": "false",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
        **dict.fromkeys(("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"), "true"),
        "FEAST_USAGE": "False",
    }
    return kept if redis is None else {**kept, "CHURN_REDIS": redis}


class Running:
    """A service that runs.

    Attributes:
        port: where it listens, on the loopback address.
        cold_start: seconds from its start until it was ready and gave its first prediction.
    """

    def __init__(self, way: Way, process: subprocess.Popen[bytes], port: int) -> None:
        self.way = way
        self.port = port
        self.cold_start = 0.0
        self._process = process

    def url(self, path: str | None = None) -> str:
        """The address of a path; of the one that takes predictions, where none is named."""
        return f"http://127.0.0.1:{self.port}{path or self.way.path}"

    def wait(self, body: str, log: Path) -> None:
        """Return when it is ready and answers `body`.

        Raises:
            ServiceError: it ended, or takes too long.
        """
        until = time.monotonic() + _LONGEST_START
        waiting = [("GET", self.way.ready, "")] if self.way.ready else []
        waiting.append(("POST", self.way.path, body))
        while waiting:
            if self._process.poll() is not None or time.monotonic() > until:
                state = "does not get ready" if self._process.poll() is None else "ended"
                raise ServiceError(f"{self.way.title} {state}; it says:\n{_end_of(log)}")
            try:
                status, _ = self._ask(*waiting[0])
            except (OSError, http.client.HTTPException):
                status = 0
            if status == 200:
                waiting.pop(0)
            else:
                time.sleep(_LOOK_EVERY)

    def _ask(self, method: str, path: str | None, body: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path or "", body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def probability(self, body: str) -> float:
        """P(churn) that it answers to a request body.

        Raises:
            ServiceError: it does not answer with one.
        """
        status, answer = self._ask("POST", self.way.path, body)
        if status != 200:
            raise ServiceError(f"{self.way.title} answered {status} to {body}: {answer[:300]!r}")
        return self.way.probability(json.loads(answer))

    def cpu_seconds(self) -> float:
        """What its processes have used, all of them together, those that have ended included."""
        return sum(_cpu_seconds(pid) for pid in tree(self._process.pid))

    def megabytes(self) -> float:
        """Proportional set size of its processes, summed: memory that they share counts once."""
        return sum(_pss(pid) for pid in tree(self._process.pid)) / 1e6

    def settle(self) -> None:
        """Wait until it has nothing left to do of what it was asked before."""
        until = time.monotonic() + _LONGEST_SETTLING
        pause = 0.3
        before = self.cpu_seconds()
        while time.monotonic() < until:
            time.sleep(pause)
            now = self.cpu_seconds()
            if now - before <= _QUIET * pause:
                return
            before = now


@contextmanager
def running(way: Way, paths: Paths, surroundings: dict[str, str], body: str) -> Iterator[Running]:
    """A service in processes of its own, ready to answer; ended with the block.

    Args:
        way: which.
        paths: the world that it serves.
        surroundings: its environment.
        body: a request that it must answer before it counts as started.

    Raises:
        ServiceError: it does not start; its log's last lines say why.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = paths.logs(way.name)
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - our own commands
            way.command(paths, port), env=surroundings, stdout=output, stderr=output, start_new_session=True
        )
        service = Running(way, process, port)
        try:
            service.wait(body, log)
            service.cold_start = time.perf_counter() - started
            yield service
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a service politely, then whatever is left of its processes."""
    everyone = tree(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_LONGEST_SETTLING)
    for pid in everyone:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        children = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return []
    return [pid, *(descendant for child in children for descendant in tree(child))]


def _cpu_seconds(pid: int) -> float:
    try:
        # after the name, which may hold blanks: utime, stime and those of children that were waited for
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, values)) / _TICKS


def _pss(pid: int) -> float:
    """Bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("Pss:")), 0.0)

"""One measurement: one step, in a process of its own, so that its peak memory is its own.

The clock starts when the step's libraries are imported and its stores are opened, for either way, and stops when its
result is there. Start-up is measured as well, and shown apart.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd

    from benchmarks.world import World

_LOOK_EVERY = 0.2  # seconds between looks at a process's memory


@dataclass(frozen=True)
class Outcome:
    """What a step did: the rows that it handled and, where the two ways are to agree, the rows themselves or facts."""

    size: int
    rows: pd.DataFrame | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """One run of one step. Seconds and GB; `failed` says why there are none."""

    way: str
    step: str
    purchases: int
    wall: float | None = None
    cpu: float | None = None
    peak: float | None = None
    start_up: float | None = None
    size: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


def measure(
    way: str, step: str, world: World, *, timeout: float, memory: float, redis: str | None = None
) -> Measurement:
    """Run a step in a fresh process.

    Args:
        way: the module: `specification`, `ours` or `large`.
        step: a key of the way's STEPS.
        world: the data.
        timeout: seconds after which the process is ended.
        memory: GB; a process that takes more is ended, before the machine suffers.
        redis: address of the online store, where the step wants one.
    """
    answer = world.folder / "results" / "answer.json"
    answer.unlink(missing_ok=True)
    environment = {**os.environ, "CHURN_HOME": str(world.settings.home), "CHURN_CONTRACT": str(world.settings.contract)}
    environment.pop("CHURN_REDIS", None)
    if redis is not None:
        environment["CHURN_REDIS"] = redis
    log = world.folder / "results" / f"{way}-{step}.log"
    command = [sys.executable, "-m", "benchmarks.measure", way, step, str(world.folder), str(world.purchases)]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # noqa: S603 - our own module
        failed = watch(process, timeout, memory)
    if not failed and process.returncode:
        failed = f"failed: {_last_line(log)}"
    if failed:
        return Measurement(way, step, world.purchases, failed=failed)
    return Measurement(**json.loads(answer.read_text()))


def watch(process: subprocess.Popen[bytes], timeout: float, memory: float) -> str:
    """Wait for a process; why it had to be ended, or nothing."""
    until = time.monotonic() + timeout
    while process.poll() is None:
        why = ""
        if time.monotonic() > until:
            why = f"ended after {timeout:.0f} s"
        elif gigabytes(process.pid, "VmRSS") > memory:
            why = f"ended at {memory:.0f} GB"
        if why:
            process.kill()
            process.wait()
            return why
        time.sleep(_LOOK_EVERY)
    return ""


def gigabytes(pid: int | str, what: str) -> float:
    """A process's memory. VmHWM is its own high-water mark; getrusage would begin with its parent's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(what)), 0.0)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "without a word"


def cpu_seconds() -> float:
    """What this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def machine(libraries: Iterable[str]) -> dict[str, Any]:
    """What was measured on: processor, memory, system, the load that there was, and versions of libraries."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ", 1)[-1].splitlines()[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def step_of(way: str, step: str) -> Callable[[World], Callable[[], Outcome]]:
    """The function that prepares a step and returns its work."""
    module: Any = importlib.import_module(f"benchmarks.{way}")
    found: Callable[[World], Callable[[], Outcome]] = module.STEPS[step]
    return found


def _child(way: str, step: str, folder: str, purchases: str) -> None:
    from benchmarks.world import World

    world = World(Path(folder), int(purchases))
    began = time.perf_counter()
    work = step_of(way, step)(world)
    started, cpu = time.perf_counter(), cpu_seconds()
    outcome = work()
    wall, cpu, peak = time.perf_counter() - started, cpu_seconds() - cpu, gigabytes("self", "VmHWM")
    if outcome.rows is not None:
        outcome.rows.to_parquet(world.result(way, step))
    found = Measurement(way, step, world.purchases, wall, cpu, peak, started - began, outcome.size, outcome.facts)
    (world.folder / "results" / "answer.json").write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    _child(*sys.argv[1:])

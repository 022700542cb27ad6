"""Processes that are killed: everything is imported once, and then each play is a fork that costs milliseconds.

Run as `python -m churn_platform_tests.storm FOLDER SEED KILLS`. Two storms go on at once. `again` plays one home and is
killed on and on, KILLS / 2 times at random moments and once each in four steps that are short, and then let through.
`once` plays the first window KILLS / 2 times in fresh homes; each play is killed once and finished by the next. While
they go on a reader looks at the tables. Landing is killed KILLS times. What all of this leaves under FOLDER is for
test_crashes.py to judge.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from datetime import date
from pathlib import Path
from typing import NoReturn

import dagster as dg
import pytest

from churn_platform import settings as environment
from churn_platform.engine import connection, identifier
from churn_platform.play import Player
from churn_platform.resources.storage import MissingTableError, TableStore
from churn_platform_tests import graph

# What two runs with the same result may differ in: when and by whom something was done, and how often it was begun.
VOLATILE = {"at", "written_at", "promoted_at", "dagster_run", "version", "previous", "model_version"}
VOLATILE |= {"training_set_version", "online_version", "by", "id", "number", "data_versions", "evidence"}
PLAYED = {"again": date(2023, 5, 1), "once": date(2023, 2, 1)}
LANDED = date(2023, 7, 1)


def preload() -> None:
    """Import now what a play would import in each process."""
    import evidently
    import feast
    import great_expectations
    import ibis
    import mlflow.sklearn
    import sklearn.linear_model
    import skops.io

    import churn_platform.resources.offline_store
    import features.definitions

    _ = evidently, feast, great_expectations, ibis, mlflow, skops, sklearn, churn_platform, features


def fork(work, *arguments) -> int:
    """Run something in a process of its own, which ends with it; returns its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = int(work(*arguments) or 0)
    except BaseException:  # noqa: BLE001 (whatever it is, it must not go on as the parent)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Storm:
    """One home in which plays are killed."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.name, self.folder = name, folder
        self.random = random.Random(seed)
        self.pristine, self.place = folder / "pristine", folder / "here"
        self.doing = mmap.mmap(-1, 256)  # what the play is about; shared with it
        self.log = (folder / "log.txt").open("a", buffering=1)
        self.count = self.finished = 0

    def begin(self) -> None:
        """A platform with data landed and nothing played, and all that a play builds before it starts."""
        os.environ["CHURN_HOME"], os.environ["CHURN_CONTRACT"] = (
            str(self.place / "home"),
            str(self.place / "contract.yaml"),
        )
        graph.forget()
        self.renew()
        self.shop = graph.make(self.place)
        self.player = Player(self.shop.contract, self.shop.settings, None, self.say)  # type: ignore[arg-type]
        for job in self.player.definitions.jobs or ():
            self.player.definitions.resolve_job_def(job.name)
        gc.freeze()

    def renew(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.pristine, self.place)

    def say(self, line: str) -> None:
        self.log.write(f"    {line}\n")

    def play(self) -> int:
        """One play to its end, in a process of its own."""
        seen = dg.DagsterInstance.handle_new_event
        doing = self.doing

        def spy(instance, event, **options):
            if event.dagster_event_type == dg.DagsterEventType.STEP_START:
                words = f"{event.step_key} {instance.get_run_by_id(event.run_id).tags.get('dagster/partition', '')}"
                doing[:] = words.encode().ljust(256)[:256]
            return seen(instance, event, **options)

        dg.DagsterInstance.handle_new_event = spy  # type: ignore[method-assign]
        self.player.instance = self.shop.instance
        return 0 if self.player.catch_up() else 1

    def run(self, kill_after: float | None, step: str = "") -> bool:
        """Play, and kill the play after so many seconds, of it or of a step; returns whether it ended before."""
        self.doing[:] = b"starting".ljust(256)
        began = time.monotonic()
        pid = fork(self.play)
        while True:
            if not self.doing[:].startswith(step.encode()):
                began = time.monotonic()
            elif kill_after is not None and time.monotonic() - began >= kill_after:
                break
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                if status:
                    self.log.write(f"FAILED: {self.doing[:].decode().strip()}\n")
                    raise SystemExit(f"{self.name}: a play that nobody killed failed; see {self.log.name}")
                return True
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.count += 1
        self.log.write(f"kill {self.count:3} after {kill_after:5.2f} s in {self.doing[:].decode().strip()}\n")
        return False

    def keep(self, name: str) -> None:
        """Put a finished home aside for judgement."""
        self.place.rename(self.folder / name)
        self.renew()

    def whole(self) -> float:
        """Play once without being killed; returns the seconds."""
        began = time.monotonic()
        self.run(None)
        took = time.monotonic() - began
        self.log.write(f"{self.name}: an uninterrupted play takes {took:.1f} s\n")
        self.keep("whole")
        return took

    def again(self, kills: int) -> int:
        """Kill plays of one home until it is through."""
        took = self.whole()
        reader = fork(self.read)
        for step in ("customer_features", "feature_store"):
            self.run(self.random.uniform(0, took / 100), step)
        while self.count < kills + 2:
            if self.run(self.random.uniform(0, took / 3)):
                self.finish()
        for step in ("candidate_model", "churn_scores"):
            while self.run(self.random.uniform(0, took / 100), step):  # the step was behind it already
                self.finish()
        self.run(None)
        self.finish()
        os.kill(reader, signal.SIGTERM)
        return os.waitpid(reader, 0)[1]

    def once(self, kills: int) -> int:
        """Kill each play once, at moments spread over its whole length, and let the next one finish it."""
        took = self.whole()
        for place in range(kills):
            moment = took * (place + self.random.random()) / kills
            while self.run(moment):  # through before its kill: this one was faster than the first
                self.finish()
                moment *= 0.8
            self.run(None)
            self.finish()
        return 0

    def finish(self) -> None:
        self.finished += 1
        self.log.write(f"{self.name}: finished after {self.count} kills so far\n")
        self.keep(f"finished-{self.finished}")

    def read(self) -> NoReturn:
        """Look at the tables, over and over, and note what each window looked like."""
        seen: dict[str, dict[str, list[str]]] = {}
        looks = 0

        def stop(*_: object) -> None:
            (self.folder / "seen.json").write_text(json.dumps({"looks": looks, "windows": seen}))
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        while True:
            tables = TableStore(self.shop.settings.tables_of(self.shop.contract))
            try:
                for name, windows in fingerprints(tables).items():
                    for window, digest in windows.items():
                        known = seen.setdefault(name, {}).setdefault(window, [])
                        known += [] if digest in known else [digest]
                looks += 1
            except (MissingTableError, OSError):
                if self.place.exists() and (self.place / "home" / "warehouse").exists():
                    raise  # otherwise the home was just put aside
            time.sleep(0.25)


def fingerprints(tables: TableStore) -> dict[str, dict[str, str]]:
    """Table to window to how many rows it has and a digest of them, without what may differ from run to run."""
    found: dict[str, dict[str, str]] = {}
    root = Path(tables.root)
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.exists() else []
    for name in names:
        if tables.version(name) is None or name.startswith("_"):
            continue
        with connection() as con:
            tables.read(con, name)
            columns = [column for column in con.table(name).columns if column not in VOLATILE]
            if "_window" not in columns:
                continue
            listed = ", ".join(map(identifier, sorted(columns)))
            rows = con.execute(
                f"SELECT _window, count(*) || ':' || sum(CAST(hash({listed}) AS HUGEINT)) FROM {name} GROUP BY 1"
            ).fetchall()
            found[name] = dict(rows)
    return found


def land(folder: Path, seed: int, kills: int) -> int:
    """Kill landings, keep what each of them left, and let the last one through."""
    shop, moments = graph.make(folder / "here"), random.Random(seed)
    for number in range(kills):
        began = time.monotonic()
        pid = fork(lambda: shop.land(LANDED))
        time.sleep(moments.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):  # through already: from the beginning
            shutil.rmtree(shop.settings.landing)
            continue
        with (folder / "log.txt").open("a") as log:
            log.write(f"kill {number + 1:3} after {time.monotonic() - began:5.2f} s in landing\n")
        if shop.settings.landing.exists():
            shutil.copytree(shop.settings.landing, folder / f"after-{number + 1}")
    return os.waitpid(fork(lambda: shop.land(LANDED)), 0)[1]


def main(folder: Path, seed: int, kills: int) -> int:
    """All storms, side by side."""
    preload()
    environment.settings.cache_clear()

    def controlled(name: str) -> int:
        storm = Storm(name, folder / name, seed)
        storm.begin()
        return getattr(storm, name)(kills // 2)

    controllers = [fork(controlled, name) for name in PLAYED]
    controllers.append(fork(land, folder / "landing", seed, kills))
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in controllers)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context():
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))

"""Landings that are killed: everything is imported once, and each of them is a fork.

Run as `python -m churn_platform_tests.prediction_kills FOLDER SEED KILLS`. Prints a line of JSON for each kill: where
it came, and what the table and the folder hold after the next landing. What they should hold is for
test_prediction_log.py to say.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from churn_platform import prediction_log
from churn_platform.resources.segments import Segments
from churn_platform.resources.storage import TableStore
from churn_platform_tests import answers, graph, storm

POINTS: dict[str, tuple[type, str, int, bool]] = {  # whose method, which, at which call, and whether that is made
    "before the first day": (TableStore, "write", 1, False),
    "between two days": (TableStore, "write", 2, False),
    "between commit and rejected lines": (Segments, "put", 1, False),
    "between rejected lines and removal": (Segments, "put", 1, True),
    "before the removal": (Segments, "remove", 1, False),
    "between two removals": (Segments, "remove", 1, True),
    "at the end": (Segments, "remove", 2, True),
}
MONTHS = (10, 11)
LINES = 40


def leave(shop: graph.Platform) -> None:
    """Two segments of two days each, with lines that cannot be read and one that was cut."""
    for number in (1, 2):
        ids = range(LINES * number, LINES * number + LINES)
        lines = [answers.line(n, at=f"2026-{MONTHS[n % 2]}-20T10:00:00Z") for n in ids]
        answers.segment(shop, *lines, b"no json\n", answers.line()[:50], number=number)


def land(shop: graph.Platform) -> int:
    """Land all that lies there."""
    prediction_log.land(shop.tables, shop.contract, shop.settings, lambda _: None)
    return 0


def plant(point: str) -> None:
    """Let this process die at a point."""
    owner, name, call, after = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)
    calls: list[str] = []

    def deadly(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) < call:
            return real(*arguments, **options)
        if after:
            real(*arguments, **options)
        return die()

    setattr(owner, name, deadly)


def die() -> NoReturn:
    """End as a process that the machine has killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it survived")


def look(shop: graph.Platform, case: dict[str, Any]) -> int:
    """Land what is left, and print what there is then."""
    land(shop)
    ids = sorted(shop.rows(prediction_log.TABLE)[prediction_log.ANSWER])
    left = {path.name: path.read_text() for path in answers.folder(shop).iterdir()}
    print(json.dumps(case | {"ids": ids, "left": left}), flush=True)  # noqa: T201
    return 0


def main(folder: Path, seed: int, kills: int) -> int:
    """All kills: at each point, and at random moments."""
    chance = random.Random(seed)
    took = 1.0
    for point in [*POINTS, *["chance"] * kills]:
        shutil.rmtree(folder / "here", ignore_errors=True)
        shop = graph.make(folder / "here")
        os.environ["CHURN_HOME"] = str(shop.home)
        graph.forget()
        leave(shop)
        began = time.monotonic()

        def doomed(shop: graph.Platform = shop, point: str = point) -> int:
            if point != "chance":
                plant(point)
            return land(shop)

        pid = storm.fork(doomed)
        if point == "chance":
            time.sleep(chance.uniform(0, took))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        took = max(took / 2, time.monotonic() - began)
        case = {"point": point, "killed": os.WIFSIGNALED(status)}
        if os.waitpid(storm.fork(look, shop, case), 0)[1]:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))

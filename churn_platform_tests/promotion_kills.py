"""Promotions and rollbacks that are killed: everything is imported once, and each of them is a fork.

Run as `python -m churn_platform_tests.promotion_kills FOLDER SEED KILLS`, where FOLDER holds a platform with three
champions one after the other and versions 5 and 6 ready for promotion. Prints a line of JSON for each kill: what was
done and where it was killed, the registry and the log right after it, and after the action that follows. What they
should be is for test_promotion.py to say.
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

import mlflow.sklearn
import sklearn.linear_model
import skops.io

from churn_platform import promotion
from churn_platform.ml import gates
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform_tests import graph, storm

ACTIONS = {"promotion": "5", "rollback": "2"}
POINTS: dict[str, tuple[type, str, bool]] = {  # whose method, which, and whether it is called before the kill
    "before the log": (TableStore, "write", False),
    "between log and alias": (Tracking, "reinstate", False),
    "between alias and confirmation": (Tracking, "reinstate", True),
    "at the end": (Tracking, "confirm", True),
}


def act(shop: graph.Platform, event: str) -> int:
    """Promote, or roll back."""
    if event == "promotion":
        promotion.promote(shop.tables, shop.tracking, ACTIONS[event], "the storm")
    else:
        promotion.rollback(shop.tables, shop.tracking, ACTIONS[event], "the storm")
    return 0


def plant(point: str) -> None:
    """Let this process die at a point."""
    owner, name, after = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)

    def deadly(*arguments: Any, **options: Any) -> NoReturn:
        if after:
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it survived")

    setattr(owner, name, deadly)


def look(shop: graph.Platform) -> dict[str, Any]:
    """The champion by the registry, the log, and how many lines it has."""
    log = promotion.history(shop.tables, shop.tracking)
    return {
        "alias": shop.alias(),
        "log": [(entry.event, entry.previous, entry.version) for entry in log],
        "lines": len(promotion.entries(shop.tables)),
    }


def judge(shop: graph.Platform, case: dict[str, Any]) -> int:
    """Look, do something else, look again; print it all."""
    case["after"] = look(shop)
    for gate in gates.COMPARING:  # 6 was compared with 3, and 5 may be champion now
        shop.tracking.record_gate("6", gate, True, "for the test", shop.alias())
    promotion.promote(shop.tables, shop.tracking, "6", "the next one")
    print(json.dumps(case | {"next": look(shop)}), flush=True)  # noqa: T201
    return 0


def main(folder: Path, seed: int, kills: int) -> int:
    """All kills: at each point, and at random moments."""
    _ = mlflow.sklearn, sklearn.linear_model, skops.io  # imported now, once, and not by each fork
    chance = random.Random(seed)
    here, took = folder / "here", 1.0
    planned = [(event, point) for event in ACTIONS for point in POINTS][:-1]
    planned += [(chance.choice(list(ACTIONS)), "chance") for _ in range(kills)]
    for event, point in planned:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(folder / "home", here / "home")
        shop = graph.make(here, graph.SIMULATED)
        os.environ["CHURN_HOME"] = str(shop.home)
        graph.forget()
        began = time.monotonic()

        def doomed(shop: graph.Platform = shop, event: str = event, point: str = point) -> int:
            if point != "chance":
                plant(point)
            return act(shop, event)

        pid = storm.fork(doomed)
        if point == "chance":
            time.sleep(chance.uniform(0, took))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        took = max(took / 2, time.monotonic() - began)
        case = {"action": (event, ACTIONS[event]), "point": point, "killed": os.WIFSIGNALED(status)}
        if os.waitpid(storm.fork(judge, shop, case), 0)[1]:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))

"""What an endpoint would have left: lines of answers, and segments of them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from churn_platform_tests.graph import Platform

FEATURES = {"purchases_30d": 2.0, "spent_90d": 81.5, "gap_90d": None, "segment": "plus"}


def line(number: int = 0, **changes: Any) -> bytes:
    """An answer as a line of a segment."""
    answer = {
        "id": f"a-{number}",
        "at": "2026-11-20T20:15:00.123456Z",
        "customer": f"c{number}",
        "version": "1",
        "arm": "champion",
        "probability": 0.2056,
        "threshold": 0.5,
        "decision": "Low Risk",
        "feature_timestamp": "2026-10-01T00:00:00Z",
        "stale": False,
        "features": FEATURES,
        "shadow_version": None,
        "shadow_probability": None,
    }
    return json.dumps(answer | changes).encode() + b"\n"


def folder(shop: Platform) -> Path:
    """Where the segments of a platform lie."""
    found = Path(shop.settings.predictions_of(shop.contract))
    found.mkdir(parents=True, exist_ok=True)
    return found


def segment(shop: Platform, *lines: bytes, number: int = 1, ending: str = ".jsonl", age: float = 0.0) -> Path:
    """Leave a segment, last written so many seconds ago."""
    path = folder(shop) / f"20261120T201500000000-a-host-77-{number}{ending}"
    path.write_bytes(b"".join(lines))
    os.utime(path, (time.time() - age,) * 2)
    return path

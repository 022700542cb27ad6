"""Windows of time: the partitions of the platform, in plain Python.

A window [start, end) is named by the local date on which it starts, as Dagster names its time partitions. What a
window's partition holds became known within the window; its snapshot is taken at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from churn_platform.contract import as_utc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from churn_platform.contract import Contract


@dataclass(frozen=True, order=True)
class Window:
    """[start, end), both in UTC; `key` is the local date of its start, YYYY-MM-DD."""

    start: datetime
    end: datetime
    key: str


def _next(day: date, cadence: str) -> date:
    if cadence == "monthly":
        return date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return day + timedelta(days=7 if cadence == "weekly" else 1)


def windows(contract: Contract, until: datetime) -> Iterator[Window]:
    """The contract's windows, oldest first, that end at or before `until`.

    A table without dates has nothing to say of the windows before the one in which it was observed.
    """
    day, last, zone = contract.time.start, contract.time.end, contract.zone
    observed = contract.snapshots.observed_at if contract.snapshots is not None else None
    while True:
        following = _next(day, contract.time.cadence)
        if last is not None and following > last:
            return
        window = Window(as_utc(day, zone), as_utc(following, zone), day.isoformat())
        if window.end > until:
            return
        if observed is None or following >= observed:
            yield window
        day = following


def window(contract: Contract, key: str) -> Window:
    """The window with this key.

    Raises:
        ValueError: the contract's history has no window that starts on that day.
    """
    time = contract.time
    try:
        start = datetime.strptime(key, "%Y-%m-%d").replace(tzinfo=contract.zone).date()
        following = _next(start, time.cadence)
    except (ValueError, OverflowError):
        raise ValueError(f"{key!r} names no window: write the date on which one starts, YYYY-MM-DD.") from None
    begins = {"monthly": start.day == 1, "weekly": (start - time.start).days % 7 == 0, "daily": True}[time.cadence]
    if begins and key == start.isoformat() and start >= time.start and (time.end is None or following <= time.end):
        return Window(as_utc(start, contract.zone), as_utc(following, contract.zone), key)
    raise ValueError(
        f"no {time.cadence} window starts on {key}: the contract's history starts on {time.start} and "
        f"{f'ends on {time.end}' if time.end else 'has no end'}."
    )

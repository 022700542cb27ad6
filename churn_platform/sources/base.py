"""What the assets know of a source, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from churn_platform.contract import as_utc, days_after
from churn_platform.windows import windows

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    import duckdb

    from churn_platform.contract import Contract
    from churn_platform.windows import Window

ORIGIN = "_source"  # the column that says which file or relation a row came from


class SourceError(RuntimeError):
    """The source cannot be read as the contract says. Retrying does not help: somebody has to act."""


class Source(Protocol):
    """A place where a team's data lies."""

    def watermark(self, con: duckdb.DuckDBPyConnection) -> datetime | None:
        """The instant before which the data is complete, or None where there is no data yet.

        Raises:
            SourceError: the source cannot be reached or read.
        """
        ...

    def rows(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:
        """Make a view of the source's rows for a table and return its name.

        The view holds the source's own columns and `_source`. It holds at least the rows of the window, and those
        whose time nobody can read, with the window that `ml.ingestion.typed_rows` puts them in.

        Raises:
            SourceError: the source cannot be reached or read.
        """
        ...


def declared_watermark(contract: Contract, now: datetime) -> datetime | None:
    """The watermark that the contract itself declares, or None where the rows have to say.

    `complete_until` is taken at its word, but no window is complete before it is over. A snapshots table without dates
    is all there at once, labels included: it is complete up to the end of the window in which its labels mature.
    """
    day = getattr(contract.source, "complete_until", None)
    if day is not None:
        return min(as_utc(day, contract.zone), now)
    snapshots = contract.snapshots
    if snapshots is None or snapshots.observed_at is None:
        return None
    matured = days_after(
        as_utc(snapshots.observed_at, contract.zone), snapshots.label.matures_after_days, contract.zone
    )
    if matured >= now:
        return now
    ends = (window.end for window in windows(contract, now) if window.end >= matured)
    return next(ends, matured)


def closed_by(newest: datetime | None, now: datetime, zone: ZoneInfo) -> datetime | None:
    """The watermark of a source of which only the newest row's time is known.

    A window counts as complete when rows reach into its last day: an export of September ends some time on the 30th,
    seldom at midnight. A window is never complete before it is over, so the wall clock bounds the result.
    """
    return None if newest is None else min(days_after(newest, 1, zone), now)

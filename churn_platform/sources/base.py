"""What the assets know of a source, whatever its kind."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from churn_platform.contract import as_utc, days_after
from churn_platform.ml.masking import derived
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
    """A place where a team's data lies.

    A row belongs to the window in which it became known: the one of its time or, where the contract names a column for
    its arrival, of the later of both. A row whose time cannot be read, or lies outside the history, is a misfit: it
    travels with one of the windows, always the same, and validation puts it into quarantine.
    """

    def watermark(self, con: duckdb.DuckDBPyConnection) -> datetime | None:
        """The instant before which the data is complete, or None where there is no data yet.

        Raises:
            SourceError: the source cannot be reached or read.
        """
        ...

    def rows(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:
        """Make a view of the source's rows for a table and return its name.

        The view holds the source's own columns and `_source`. It holds at least the rows of the window; of the misfits
        it holds those that travel with it, and no others.

        Raises:
            SourceError: the source cannot be reached or read.
        """
        ...

    def digest(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:
        """A digest of the rows that belong to a window now, misfits that travel with it included.

        Whoever records it asks for it before reading the rows: a row that comes in between shows as a change at the
        next look. It is empty where there is nothing to remember: for a window without rows, for a table without time
        (what lands with a window is what was known then, and a later change of it must not reach back), and for a
        window that `digests` will not look at again.

        Raises:
            SourceError: the source cannot be reached or read.
        """
        ...

    def digests(self, con: duckdb.DuckDBPyConnection, table: str, thorough: bool = False) -> dict[str, str]:
        """Window key to `digest`, of the windows that hold rows and are looked at again; compare with `changed`.

        Without `thorough` it costs next to nothing when nothing has changed: files that are known are not opened,
        and a database is not asked at all. With it, a database computes the digests of its newest windows
        (`source.look_back_windows`), and of the first one, with which its misfits travel.

        Raises:
            SourceError: the source cannot be reached or read.
        """
        ...


def changed(recorded: str | None, found: str) -> bool:
    """Whether a window's rows are others at the source than when `recorded` was the digest of them.

    What was recorded under another reading of the contract (other columns, another time zone) cannot be compared, and
    nothing is known of a window without a record: neither counts as changed. Nor does a window of which nothing is
    left at the source: exports that were moved away do not undo what was made of them.
    """
    if recorded is None or not found:
        return False
    return not recorded or (_reading_of(recorded) == _reading_of(found) and recorded != found)


def digest_of(reading: str, rows: int, total: int) -> str:
    """A digest as text: how the rows were read, their number, and the sum of their hashes, whatever their order."""
    return f"{reading}:{rows}:{total:x}" if rows else ""


def _reading_of(digest: str) -> str:
    return digest.partition(":")[0]


def salt_of(key: bytes) -> str:
    """What is hashed with every row: a digest of few rows must not let anybody try out guesses of what they hold."""
    return derived(key, "digests of the source").hex()[:32]


def reading(contract: Contract, table_name: str, salt: str) -> str:
    """A fingerprint of all in the contract that decides what is read from a table's rows, and into which window."""
    table, time = contract.tables.items()[table_name], contract.time
    columns = {name: (column.type, column.from_, column.format) for name, column in sorted(table.kept.items())}
    written = (table.delimiter, table.header, table.decimal, table.encoding)
    history = (time.start, time.end, time.cadence, time.timezone)
    parts = (columns, table.time_column, table.arrived_column, written, history, salt)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def horizon(contract: Contract, now: datetime) -> datetime:
    """The instant from which on times lie outside the history for now.

    That is the start of the first window that begins more than a day from now (a day for clocks and zones that are
    off), or the history's end. A row beyond it is a misfit until its window comes near, and enters that window then.
    """
    time, day = contract.time, days_after(now, 1, contract.zone).astimezone(contract.zone).date()
    day += timedelta(days=1)
    while (time.cadence == "monthly" and day.day != 1) or (time.cadence == "weekly" and (day - time.start).days % 7):
        day += timedelta(days=1)
    near = as_utc(day, contract.zone)
    return near if time.end is None else min(near, as_utc(time.end, contract.zone))


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

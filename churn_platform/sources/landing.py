"""The sources of the demonstration: real or simulated data that lands month by month, as a company's exports do.

A producer writes one Parquet file per table and window into the landing folder; from then on the data is read like
anybody's files. `churn land` is the only thing that lands data, so whatever happens after it is the platform's doing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from churn_platform.contract import CompleteJourney, Simulated, as_utc
from churn_platform.sources.base import SourceError
from churn_platform.sources.files import FilesSource
from churn_platform.windows import window as window_of
from churn_platform.windows import windows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    import duckdb
    import pyarrow as pa

    from churn_platform.contract import Contract
    from churn_platform.sources.index import Index
    from churn_platform.windows import Window


class Producer(Protocol):
    """Makes the rows that land with a window."""

    notice: str

    def tables(self, window: Window) -> Iterator[tuple[str, pa.Table]]:
        """Table name and rows, in parts; a table may come in any number of parts."""
        ...


class LandingSource(FilesSource):
    """Reads the landing folder and, for the demonstration, fills it."""

    def __init__(self, contract: Contract, landing: Path, index: Index | None = None) -> None:
        super().__init__(contract, landing, index)
        self.landing = landing / contract.name

    def path(self, table: str) -> str:
        """The parts of a table that have landed."""
        return str(self.landing / table / "*.parquet")

    def watermark(self, con: duckdb.DuckDBPyConnection) -> datetime | None:  # noqa: ARG002
        """The end of the newest window that landed whole, and all before it."""
        landed = self.landed()
        newest = None
        if landed:
            for window in windows(self.contract, window_of(self.contract, landed[-1]).end):
                if window.key not in landed:  # it is being landed again
                    break
                newest = window.end
        return newest

    def landed(self) -> list[str]:
        """The keys of the windows that have landed whole, oldest first."""
        return sorted(path.stem for path in (self.landing / "_landed").glob("*.done"))

    def pending(self, until: datetime) -> list[Window]:
        """The windows up to `until` that have not landed yet."""
        landed = set(self.landed())
        return [window for window in windows(self.contract, until) if window.key not in landed]

    def next_window(self) -> Window:
        """The window after the newest that landed. Raises SourceError at the end of the history."""
        from datetime import UTC, datetime

        end = self.contract.time.end
        until = as_utc(end, self.contract.zone) if end else datetime.now(UTC)
        pending = self.pending(until)
        if not pending:
            raise SourceError(f"all of {self.contract.name}'s history has landed already (time.end is {end}).")
        return pending[0]

    def producer(self) -> Producer:
        """The producer of this contract's demonstration source."""
        source = self.contract.source
        if isinstance(source, CompleteJourney):
            from churn_platform.sources.complete_journey import CompleteJourneyProducer

            return CompleteJourneyProducer(self.contract)
        if isinstance(source, Simulated):
            from churn_platform.sources.simulated import SimulatedProducer

            return SimulatedProducer(self.contract, source)
        raise SourceError(f"the source `{source.kind}` is a team's own: its data lands by itself.")

    def land(self, window: Window, producer: Producer) -> int:
        """Land one window and return its number of rows. Killed half-way, it is simply landed again.

        A window that landed before counts as not landed meanwhile. Parts that it had before and has no longer go last.
        """
        import pyarrow.parquet as pq

        marker = self.landing / "_landed" / f"{window.key}.done"
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        before = {
            part
            for name in self.contract.tables.items()
            for part in (self.landing / name).glob(f"{window.key}-*.parquet")
        }
        parts: dict[str, int] = {}
        rows = 0
        for name, table in producer.tables(window):
            if name not in self.contract.tables.items():
                continue
            folder = self.landing / name
            folder.mkdir(parents=True, exist_ok=True)
            part = parts[name] = parts.get(name, -1) + 1
            final = folder / f"{window.key}-{part:03}.parquet"
            partial = final.with_name(f".{final.name}.{os.getpid()}")
            pq.write_table(table, partial)
            partial.replace(final)
            before.discard(final)
            rows += table.num_rows
        for left in before:
            left.unlink(missing_ok=True)
        marker.touch()
        return rows

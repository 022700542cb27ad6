"""What is known of a source's files without opening them: an index, one entry a file.

An entry says what one scan of a file found: per window, how many rows, the sum of their hashes, and their first and
last time. It says nothing that depends on the clock: which rows lie in the future is decided when it is asked. A file
that is as it was (`stamp`), under a contract that reads it as it did (`reading`), is never opened for it again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from churn_platform.contract import as_utc
from churn_platform.sources.base import digest_of, horizon, salt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from datetime import datetime

    import duckdb

    from churn_platform.contract import Contract
    from churn_platform.resources.storage import TableStore
    from churn_platform.windows import Window

UNREADABLE, BEFORE, AFTER = "", "<", ">"  # in place of a window's key, of rows that fit in none

_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "stamp": pa.string(),
        "reading": pa.string(),
        "dialect": pa.string(),
        "columns": pa.string(),
        "key": pa.string(),
        "rows": pa.int64(),
        "total": pa.string(),
        "first": pa.int64(),
        "last": pa.int64(),
    }
)


@dataclass(frozen=True)
class Group:
    """The rows of a file that became known in one window; `first` and `last` in microseconds since 1970, UTC."""

    key: str
    rows: int
    total: int
    first: int | None
    last: int | None


@dataclass(frozen=True)
class Entry:
    """What is known of a file: its state, how it was read and is written, its columns with types, and its rows."""

    stamp: str
    reading: str
    dialect: str
    columns: dict[str, str]
    groups: tuple[Group, ...]

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return sum(group.rows for group in self.groups)


@dataclass
class Index:
    """The entries of a source's files, in memory and, with a store, in a table beside those that are made of them.

    The table of the index is replaced whole with every refresh. Of two processes that refresh it at the same time one
    may undo the other's: then a file is scanned once more.
    """

    store: TableStore | None = None
    key: Callable[[], bytes] = field(default=lambda: b"")
    _entries: dict[str, dict[str, Entry]] = field(default_factory=dict)

    @property
    def salt(self) -> str:
        """What rows are hashed with: see `salt_of`."""
        return salt_of(self.key())

    def entries(self, table: str) -> dict[str, Entry]:
        """File to what is known of it, as this process knows it."""
        return self._entries.get(table, {})

    def load(self, con: duckdb.DuckDBPyConnection, table: str) -> None:
        """Learn what other processes have stored."""
        name = f"_source_index_{table}"
        if self.store is None or self.store.version(name) is None:
            return
        view = self.store.read(con, name, view="_known_files")
        names = ", ".join(f'"{column}"' for column in _SCHEMA.names)
        found: dict[str, list[tuple[Any, ...]]] = {}
        for file, *about in con.execute(f"SELECT {names} FROM {view}").fetchall():
            found.setdefault(file, []).append(tuple(about))
        self._entries[table] = {file: _entry(rows) for file, rows in found.items()}

    def remember(self, table: str, entries: dict[str, Entry]) -> None:
        """Know these files, and no others."""
        self._entries[table] = entries
        if self.store is None:
            return
        from deltalake.exceptions import DeltaError

        rows = [row for file, entry in sorted(entries.items()) for row in _rows(file, entry)]
        stored = pa.Table.from_pylist([dict(zip(_SCHEMA.names, row, strict=True)) for row in rows], _SCHEMA)
        try:
            self.store.write(f"_source_index_{table}", stored)
        except DeltaError:
            if self.store.version(f"_source_index_{table}") is None:
                raise  # else another process wrote at this very moment: what its index lacks is scanned again


def _rows(file: str, entry: Entry) -> Iterator[tuple[object, ...]]:
    """An entry as rows of the stored table; a file without rows has one, too."""
    about = (file, entry.stamp, entry.reading, entry.dialect, json.dumps(entry.columns))
    for group in entry.groups:
        yield (*about, group.key, group.rows, str(group.total), group.first, group.last)
    if not entry.groups:
        yield (*about, None, 0, "0", None, None)


def _entry(rows: list[tuple[Any, ...]]) -> Entry:
    stamp, reading, dialect, columns = rows[0][:4]
    groups = tuple(
        Group(key, rows_in, int(total), first, last) for *_, key, rows_in, total, first, last in rows if key is not None
    )
    return Entry(stamp, reading, dialect, json.loads(columns), groups)


class Known:
    """What an index answers as of an instant."""

    def __init__(self, contract: Contract, entries: dict[str, Entry], now: datetime) -> None:
        self.contract = contract
        self.entries = entries
        self._now = micros(now)
        self._beyond = micros(horizon(contract, now))

    def _fits(self, group: Group) -> bool:
        return group.key not in (UNREADABLE, BEFORE, AFTER) and (group.first or 0) < self._beyond

    def carried_with(self, entry: Entry) -> str:
        """The window with which the misfits of a file travel: that of its oldest row, or the first of all."""
        fitting = [(group.first or 0, group.key) for group in entry.groups if self._fits(group)]
        return min(fitting)[1] if fitting else self.contract.time.start.isoformat()

    def holders(self, window: Window) -> tuple[list[str], list[str]]:
        """The files that hold rows of a window: those whose misfits travel with it, and the others."""
        carriers, others = [], []
        start, end = micros(window.start), micros(window.end)
        for file, entry in self.entries.items():
            if not all(map(self._fits, entry.groups)) and self.carried_with(entry) == window.key:
                carriers.append(file)
            elif any(
                group.first is not None and group.last is not None and group.first < end and group.last >= start
                for group in filter(self._fits, entry.groups)
            ):
                others.append(file)
        return carriers, others

    def digests(self, reading: str) -> dict[str, str]:
        """Window key to the digest of the rows that belong to it, with the misfits that travel with it."""
        rows: dict[str, int] = {}
        totals: dict[str, int] = {}
        for entry in self.entries.values():
            carrier = ""
            for group in entry.groups:
                key = group.key if self._fits(group) else (carrier := carrier or self.carried_with(entry))
                rows[key] = rows.get(key, 0) + group.rows
                totals[key] = totals.get(key, 0) + group.total
        return {key: digest_of(reading, rows[key], totals[key]) for key in sorted(rows)}

    def newest(self) -> int | None:
        """A time up to which rows are known to reach, in microseconds, or None where no time is readable and past.

        It is the newest that is not in the future, except where a window holds both past and future rows: then the
        oldest of that window stands for it, which closes the same windows.
        """
        past: list[int] = []
        for entry in self.entries.values():
            for group in entry.groups:
                if group.last is not None and group.last <= self._now:
                    past.append(group.last)
                elif group.first is not None and group.first <= self._now:
                    past.append(group.first)
        return max(past, default=None)


def columns_of(entries: Collection[Entry]) -> dict[str, str]:
    """Name to type of the columns that any of some files has."""
    found: dict[str, str] = {}
    lower: set[str] = set()
    for entry in entries:
        for name, kind in entry.columns.items():
            if name.lower() not in lower:
                lower.add(name.lower())
                found[name] = kind
    return found


def micros(moment: datetime) -> int:
    """Microseconds since 1970, UTC."""
    moment = as_utc(moment, moment.tzinfo)  # type: ignore[arg-type]
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond

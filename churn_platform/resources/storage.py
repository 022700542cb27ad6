"""Tables: Delta Lake, on local disk or in S3.

Every write is one atomic commit that makes a new version: a reader sees the old table or the new one, never half of
one, and a version that a training run recorded can be read again later. A partition (one window) is replaced whole,
so materializing it again has the same result as materializing it once.
"""

from __future__ import annotations

import random
from time import sleep
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from churn_platform.engine import identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import duckdb

_EMPTY = "_empty_windows"  # which windows of which tables were written without a row
_ATTEMPTS = 8
PARTITION = "_window"  # the partition column of every partitioned table: the window's key


class MissingTableError(RuntimeError):
    """A table, or a window of it, is asked for that has not been materialized."""


class TableStore:
    """The tables of the platform, by name, under one folder or S3 prefix."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def path(self, name: str) -> str:
        """Where a table is."""
        return f"{self.root}/{name}"

    def version(self, name: str) -> int | None:
        """The newest version of a table, or None where there is no such table."""
        try:
            return DeltaTable(self.path(name)).version()
        except TableNotFoundError:
            return None

    def windows(self, name: str) -> list[str]:
        """The keys of the windows that a partitioned table holds, oldest first."""
        try:
            table = DeltaTable(self.path(name))
        except TableNotFoundError:
            return []
        held = {str(partition[PARTITION]) for partition in table.partitions()}
        return sorted(held | self._empty_windows(name))

    def _empty_windows(self, name: str) -> set[str]:
        """The windows that were written without a row: Delta keeps no trace of those by itself."""
        if name == _EMPTY or self.version(_EMPTY) is None:
            return set()
        marks = DeltaTable(self.path(_EMPTY)).to_pyarrow_table(filters=[("table", "=", name)])
        return set(marks.column("window").to_pylist())

    def write(
        self, name: str, rows: duckdb.DuckDBPyRelation | pa.Table, window: str | None = None, keep: bool = False
    ) -> int:
        """Write a table, or one window of it, in one commit; returns the new version.

        Args:
            name: the table.
            rows: what to write; a relation is streamed, so it may be larger than memory.
            window: replace this window only. Without it the whole table is replaced.
            keep: append to the table instead of replacing anything.
        """
        path = self.path(name)
        if window is None:
            schema_mode: Literal["merge", "overwrite"] = "merge" if keep else "overwrite"
            write_deltalake(path, _reader(rows), mode="append" if keep else "overwrite", schema_mode=schema_mode)
            return int(DeltaTable(path).version())
        self._create(name, _windowed(_reader(rows).schema))

        def commit() -> None:
            # a column that the contract gained since is NULL in the windows before
            batches = _with_window(_reader(rows), window)
            if keep:
                write_deltalake(path, batches, mode="append", schema_mode="merge")
            else:
                write_deltalake(
                    path, batches, mode="overwrite", predicate=f"{PARTITION} = '{window}'", schema_mode="merge"
                )

        _again_on_conflict(commit)
        written = DeltaTable(path)
        if window not in {str(partition[PARTITION]) for partition in written.partitions()}:
            mark = pa.table({"table": [name], "window": [window]})
            _again_on_conflict(lambda: write_deltalake(self.path(_EMPTY), mark, mode="append"))
        return int(written.version())

    def _create(self, name: str, schema: pa.Schema) -> None:
        """Make an empty partitioned table where there is none. Of several processes one makes it, all go on.

        The first write may not make it: two that replace "all there is" at once would lose the windows of one.
        """
        if self.version(name) is None:
            try:
                DeltaTable.create(self.path(name), schema, mode="ignore", partition_by=[PARTITION])
            except DeltaError:
                if self.version(name) is None:
                    raise

    def read(
        self,
        con: duckdb.DuckDBPyConnection,
        name: str,
        windows: Iterable[str] | None = None,
        version: int | None = None,
        view: str | None = None,
    ) -> str:
        """Make a table a view on a connection and return the view's name.

        Args:
            con: where the view is made.
            name: the table.
            windows: only these windows of it.
            version: an older version; default the newest.
            view: what to call the view; default the table's name.

        Raises:
            MissingTableError: there is no such table.
        """
        try:
            table = DeltaTable(self.path(name), version=version)
        except TableNotFoundError:
            raise MissingTableError(
                f"the table {name} does not exist yet: materialize the asset {name} first ({self.path(name)})."
            ) from None
        view = view or name
        dataset = table.to_pyarrow_dataset()
        con.register(f"_{view}_dataset", dataset)
        where = ""
        if windows is not None:
            listed = ", ".join(f"'{window}'" for window in windows) or "NULL"
            where = f" WHERE {PARTITION} IN ({listed})"
        source = identifier(f"_{view}_dataset")
        con.execute(f"CREATE OR REPLACE TEMP VIEW {identifier(view)} AS SELECT * FROM {source}{where}")
        return view


def _stored(schema: pa.Schema) -> pa.Schema:
    """Times are stored in UTC, whatever zone the connection that made them thinks in."""
    utc = pa.timestamp("us", "UTC")
    return pa.schema([f.with_type(utc) if pa.types.is_timestamp(f.type) else f for f in schema])


def _reader(rows: duckdb.DuckDBPyRelation | pa.Table) -> pa.RecordBatchReader:
    if isinstance(rows, pa.Table):
        reader = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches())
    else:
        reader = rows.to_arrow_reader(100_000)
    return reader.cast(_stored(reader.schema))


def _windowed(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(PARTITION, pa.string()))


def _with_window(reader: pa.RecordBatchReader, window: str) -> pa.RecordBatchReader:
    schema = _windowed(reader.schema)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            key = pa.array([window] * len(batch), pa.string())
            yield pa.RecordBatch.from_arrays([*batch.columns, key], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _again_on_conflict(write: Callable[[], None]) -> None:
    """Write, and once more when another process committed to the table meanwhile."""
    for attempt in range(_ATTEMPTS):
        try:
            return write()
        except CommitFailedError:
            if attempt == _ATTEMPTS - 1:
                raise
            sleep((0.05 + random.random() / 10) * (attempt + 1))  # noqa: S311 - only to spread the attempts
    return None

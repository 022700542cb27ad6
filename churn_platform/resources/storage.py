"""Tables: Delta Lake, on local disk or in S3.

Every write is one atomic commit that makes a new version: a reader sees the old table or the new one, never half of
one, and a version that a training run recorded can be read again later. A partition (one window) is replaced whole,
so materializing it again has the same result as materializing it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import TableNotFoundError

from churn_platform.engine import identifier

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb

_EMPTY = "_empty_windows"
PARTITION = "_window"  # the partition column of every partitioned table: the window's key


class MissingTableError(RuntimeError):
    """A table, or a window of it, is asked for that has not been materialized."""


class TableStore:
    """The tables of the platform, by name, under one folder or S3 prefix."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def path(self, name: str) -> str:
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
            rows: what to write; a relation is streamed, so it may be larger than memory.
            window: replace this window only. Without it the whole table is replaced.
            keep: append to the table instead of replacing anything.
        """
        reader = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches()) if isinstance(rows, pa.Table) else None
        if reader is None:
            reader = rows.to_arrow_reader(100_000)  # type: ignore[union-attr]
        reader = reader.cast(_stored(reader.schema))
        options: dict[str, Any] = {"mode": "append" if keep else "overwrite"}
        if window is not None:
            schema = reader.schema.append(pa.field(PARTITION, pa.string()))
            reader = pa.RecordBatchReader.from_batches(schema, _with_window(reader, schema, window))
            options["partition_by"] = [PARTITION]
            if not keep and self.version(name) is not None:
                options["predicate"] = f"{PARTITION} = '{window}'"
        write_deltalake(self.path(name), reader, **options)
        written = DeltaTable(self.path(name))
        if window is not None and not written.file_uris(partition_filters=[(PARTITION, "=", window)]):
            mark = pa.table({"table": [name], "window": [window]})
            write_deltalake(self.path(_EMPTY), mark, mode="append")
        return int(written.version())

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
        con.execute(f"CREATE OR REPLACE TEMP VIEW {identifier(view)} AS SELECT * FROM {identifier(f'_{view}_dataset')}{where}")
        return view


def _stored(schema: pa.Schema) -> pa.Schema:
    """Times are stored in UTC, whatever zone the connection that made them thinks in."""
    utc = pa.timestamp("us", "UTC")
    return pa.schema([f.with_type(utc) if pa.types.is_timestamp(f.type) else f for f in schema])


def _with_window(reader: pa.RecordBatchReader, schema: pa.Schema, window: str) -> Iterable[pa.RecordBatch]:
    for batch in reader:
        yield pa.RecordBatch.from_arrays([*batch.columns, pa.array([window] * len(batch), pa.string())], schema=schema)

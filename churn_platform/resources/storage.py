"""Tables: Delta Lake, on local disk or in S3.

Every write is one atomic commit that makes a new version: a reader sees the old table or the new one, never half of
one, and a version that a training run recorded can be read again later. A partition (one window) is replaced whole,
so materializing it again has the same result as materializing it once.

Beside the tables stands a ledger: what each window was made of and what came out, as digests. Whether a window is out
of date is read from there, without opening a table.
"""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Schema, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, PyFileSystem

from churn_platform.engine import connection, identifier, literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import duckdb

LEDGER = "_ledger"
# All but one of its columns are partition columns: they stand in Delta's log, and reading them opens no file.
_LEDGER_KEYS = ["table", "window", "made_of", "content"]
_LEDGER_SCHEMA = pa.schema([*((name, pa.string()) for name in _LEDGER_KEYS), ("written_at", pa.timestamp("us", "UTC"))])
_UNKNOWN = "-"  # Delta does not tell an empty partition value from a missing one
_ATTEMPTS = 8
# Delta's log would keep the least and the greatest value of each column, a customer's id among them.
_PROPERTIES = {
    "delta.dataSkippingNumIndexedCols": "0",
    # Left alone, Delta drops the log of old versions after a while, and with it versions that a model was trained on:
    # only `retention.prune` knows which those are.
    "delta.enableExpiredLogCleanup": "false",
}
_RECORD = "churn_record"  # the key in a commit's metadata
_WILDCARDS = "*?["  # with one of them in its path, a file is a pattern to DuckDB
PARTITION = "_window"  # the partition column of every partitioned table: the window's key


class Entry(NamedTuple):
    """What the ledger says of a written window: digests, empty where the writer gave none."""

    made_of: str  # of what it was computed from
    content: str  # of its rows


class MissingTableError(RuntimeError):
    """A table, or a window of it, is asked for that has not been materialized."""


class MissingVersionError(MissingTableError):
    """An old version of a table is asked for that cannot be read (any more)."""


class ChangedTypeError(RuntimeError):
    """A column's type was changed, and rows that stay would lose something of their values by it."""


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
            held = _partitions(DeltaTable(self.path(name)))
        except TableNotFoundError:
            held = set()
        return sorted(held | set(self.entries(name)))

    def ledger(self, version: int | None = None) -> dict[str, dict[str, Entry]]:
        """Table to window to what the ledger says of it; windows that were written without digests are not in it."""
        try:
            listed = DeltaTable(self.path(LEDGER), version=version).partitions()
        except TableNotFoundError:
            return {}
        found: dict[str, dict[str, Entry]] = {}
        for entry in listed:
            made_of, content = ("" if entry[key] == _UNKNOWN else entry[key] for key in ("made_of", "content"))
            found.setdefault(entry["table"], {})[entry["window"]] = Entry(made_of, content)
        return found

    def entries(self, name: str) -> dict[str, Entry]:
        """Window of one table to what the ledger says of it."""
        return self.ledger().get(name, {})

    def enter(self, name: str, window: str, entry: Entry) -> None:
        """Write a window's entry into the ledger, in place of an earlier one."""
        self._create(LEDGER, _LEDGER_SCHEMA, _LEDGER_KEYS)
        values = [name, window, entry.made_of or _UNKNOWN, entry.content or _UNKNOWN, datetime.now(UTC)]
        row = pa.table([[value] for value in values], schema=_LEDGER_SCHEMA)
        where = f"\"table\" = '{name}' AND \"window\" = '{window}'"
        _again_on_conflict(lambda: write_deltalake(self.path(LEDGER), row, mode="overwrite", predicate=where))

    def write(
        self,
        name: str,
        rows: duckdb.DuckDBPyRelation | pa.Table,
        window: str | None = None,
        *,
        keep: bool = False,
        made_of: str = "",
        content: str = "",
        record: Mapping[str, Any] | None = None,
    ) -> int:
        """Write a table, or one window of it, in one commit; returns the new version.

        The ledger's entry follows in a commit of its own. Killed between the two, the window's old entry stands beside
        its new rows: it looks out of date, and is computed once more.

        A column that the table lacks is NULL in the rows before. One whose type has changed since has the new type in
        all rows from this commit on, which then rewrites the table.

        Args:
            name: the table.
            rows: what to write; a relation is streamed, so it may be larger than memory.
            window: replace this window only. Without it the whole table is replaced.
            keep: append to the table instead of replacing anything.
            made_of: digest of what the window was computed from, for the ledger.
            content: digest of its rows, for the ledger.
            record: what to know of the new version, in JSON's types; part of the same commit (see `recorded`).

        Raises:
            ChangedTypeError: rows that stay hold values that the new type of their column cannot. Nothing was written.
        """
        noted = None if record is None else CommitProperties(custom_metadata={_RECORD: json.dumps(record)})
        try:
            table = DeltaTable(self.path(name))  # opened once: of a small window that is most of the cost
        except TableNotFoundError:
            none = rows.slice(0, 0) if isinstance(rows, pa.Table) else rows.limit(0)  # whose types cost no query
            schema = _reader(none).schema
            self._create(name, *((schema, []) if window is None else (_windowed(schema), [PARTITION])))
            table = DeltaTable(self.path(name))
        if window is None:
            if keep:
                _merge(name, table, _reader(rows), commit_properties=noted)
            else:
                # "true": without a predicate two who replace an empty table at once would both be in it
                _commit(
                    table,
                    _reader(rows),
                    mode="overwrite",
                    predicate="true",
                    schema_mode="overwrite",
                    commit_properties=noted,
                )
            return int(table.version())

        def commit() -> None:
            table.update_incremental()
            replaced = None if keep else f"{PARTITION} = {literal(window)}"
            _merge(name, table, _with_window(_reader(rows), window), replaced, commit_properties=noted)

        _again_on_conflict(commit)
        if made_of or content or window not in _partitions(table):  # Delta keeps no trace of an empty window
            self.enter(name, window, Entry(made_of, content))
        return int(table.version())

    def _create(self, name: str, schema: pa.Schema, partition_by: list[str]) -> None:
        """Make an empty table where there is none. Of several processes one makes it, all go on.

        The first write may not make it: two that replace "all there is" at once would lose the windows of one.
        """
        if self.version(name) is None:
            try:
                DeltaTable.create(
                    self.path(name), schema, mode="ignore", partition_by=partition_by, configuration=_PROPERTIES
                )
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
            MissingVersionError: there is no such version of it (any more).
        """
        table = self.open(name, version)
        view = view or name
        make_view(con, view, table, None if windows is None else [(PARTITION, "in", list(windows))])
        return view

    def open(self, name: str, version: int | None = None) -> DeltaTable:
        """A table, or an older version of it, as Delta has it. Raises as `read` does."""
        try:
            return DeltaTable(self.path(name), version=version)
        except DeltaError:
            if version is None or self.version(name) is None:
                raise MissingTableError(
                    f"the table {name} does not exist yet: materialize the asset {name} first ({self.path(name)})."
                ) from None
            raise MissingVersionError(f"version {version} of {name} is not in its log.") from None

    def files(self, name: str = "") -> PyFileSystem:
        """The folder of a table (default: of all tables) as Delta sees it, with Delta's own credentials."""
        return PyFileSystem(DeltaStorageHandler(f"{self.root}/{name}"))

    def names(self) -> list[str]:
        """Every table that there is, the ledger among them."""
        found = self.files().get_file_info(FileSelector("", allow_not_found=True))
        return sorted(entry.base_name for entry in found if self.version(entry.base_name) is not None)

    def commit(self, name: str, version: int) -> list[dict[str, Any]]:
        """The actions of the commit that made a version, each a dictionary with one key, as in Delta's protocol.

        Delta's own `history` is not used: it numbers the commits of an older version, or of a table that is being
        written, wrongly.

        Raises:
            MissingVersionError: the log does not hold it (any more).
        """
        try:
            with self.files(name).open_input_file(f"_delta_log/{version:020}.json") as file:
                return [json.loads(line) for line in file.read().splitlines() if line]
        except FileNotFoundError:
            raise MissingVersionError(f"version {version} of {name} is not in its log.") from None

    def recorded(self, name: str, version: int) -> dict[str, Any]:
        """What its writer noted of a version; empty where it noted nothing. Raises MissingVersionError."""
        told: dict[str, Any] = {}
        for action in self.commit(name, version):
            told |= action.get("commitInfo", {})
        found: dict[str, Any] = json.loads(told.get(_RECORD, "{}"))
        return found

    def require_version(self, name: str, version: int) -> None:
        """Refuse a version that cannot be read whole. Raises as `read` does."""
        paths = pa.table(self.open(name, version).get_add_actions()).column("path").to_pylist()
        found = self.files(name).get_file_info([unquote(path) for path in paths]) if paths else []
        missing = sum(not entry.is_file for entry in found)
        if missing:
            raise MissingVersionError(f"version {version} of {name} lacks {missing} of its {len(found)} files.")


def make_view(
    con: duckdb.DuckDBPyConnection, view: str, table: DeltaTable, where: list[tuple[str, str, Any]] | None = None
) -> None:
    """Make a version of a table a view on a connection; `where` chooses partitions, as Delta does.

    Files on disk are read by the engine itself, which is two to three times as fast as through Arrow; those in S3
    through Arrow and Delta's own credentials.
    """
    schema, files = pa.schema(table.schema().to_arrow()), table.file_uris(file_pruning_predicate=where)
    if any("://" in file or set(_WILDCARDS) & set(file) for file in files):
        rows = f"_rows_of_{view}"
        con.register(rows, table.to_pyarrow_dataset(file_pruning_predicate=where))
        scan = f"SELECT * FROM {identifier(rows)}"
    else:
        known = con.from_arrow(schema.empty_table())  # the version's columns, which not every file may have yet
        empty = (f"CAST(NULL AS {kind}) AS {identifier(n)}" for n, kind in zip(known.columns, known.types, strict=True))
        scan = f"SELECT {', '.join(empty)} WHERE false"
        if files:
            partitions = ", ".join(f"{identifier(name)}: VARCHAR" for name in table.metadata().partition_columns)
            hive = f"true, hive_types = {{{partitions}}}" if partitions else "false"
            listed = ", ".join(map(literal, files))
            scan += f" UNION ALL BY NAME SELECT * FROM read_parquet([{listed}], hive_partitioning = {hive}, "
            scan += "union_by_name = true)"
        scan = f"SELECT {', '.join(map(identifier, known.columns))} FROM ({scan})"
    con.execute(f"CREATE OR REPLACE TEMP VIEW {identifier(view)} AS {scan}")


def _commit(table: DeltaTable, rows: pa.RecordBatchReader, **options: Any) -> None:
    """Write rows. Numbers and times that hardly repeat go without a dictionary: faster to write, and smaller."""
    single = (
        field.name for field in rows.schema if pa.types.is_floating(field.type) or pa.types.is_timestamp(field.type)
    )
    plain = dict.fromkeys(single, ColumnProperties(dictionary_enabled=False))
    write_deltalake(table, rows, writer_properties=WriterProperties(column_properties=plain), **options)


def _merge(
    name: str, table: DeltaTable, rows: pa.RecordBatchReader, replaced: str | None = None, **options: Any
) -> None:
    """Add rows to a table, in place of those that a predicate chooses. Raises ChangedTypeError."""
    stored = {field.name: field.type for field in table.schema().fields}
    arriving = {field.name: field.type for field in Schema.from_arrow(rows.schema).fields}
    changed = [column for column, kind in arriving.items() if stored.get(column, kind) != kind]
    if not changed:  # else a merge would cast what arrives to the old type, whatever is lost
        mode = {"mode": "append"} if replaced is None else {"mode": "overwrite", "predicate": replaced}
        _commit(table, rows, schema_mode="merge", **mode, **options)
        return
    with connection() as con:
        make_view(con, "_held", table)
        kinds = dict(zip(rows.schema.names, con.from_arrow(rows.schema.empty_table()).types, strict=True))
        rest = f"FROM _held WHERE ({replaced or 'false'}) IS NOT TRUE"
        for column in changed:
            value, kind = identifier(column), kinds[column]
            (old,) = con.sql(f"SELECT {value} FROM _held").types
            kept = f"TRY_CAST(TRY_CAST({value} AS {kind}) AS {old})"
            if {"DATE", "TIMESTAMP WITH TIME ZONE"} & {str(kind), str(old)}:
                kept = "NULL"  # no time is guessed from what is none, nor a day from an instant without its zone
            (lost,) = con.execute(f"SELECT count(*) FILTER ({kept} IS DISTINCT FROM {value}) {rest}").fetchall()[0]
            if lost:
                raise ChangedTypeError(
                    f"{column} of {name} was {old} and is to be {kind} now, but {lost:,} rows of other windows hold "
                    "values that would not survive it. Nothing was written. Undo the change of its type in "
                    "contract.yaml; or give the column another name there, with `from` the source's: then the windows "
                    "before keep what they hold."
                )
        con.register("_arriving", rows)
        casts = ", ".join(f"TRY_CAST({identifier(c)} AS {kinds[c]}) AS {identifier(c)}" for c in changed)
        whole = con.sql(f"SELECT * REPLACE ({casts}) {rest} UNION ALL BY NAME SELECT * FROM _arriving")
        _commit(table, _reader(whole), mode="overwrite", predicate="true", schema_mode="overwrite", **options)


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


def _partitions(table: DeltaTable) -> set[str]:
    return {str(partition[PARTITION]) for partition in table.partitions()}


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

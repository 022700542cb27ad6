"""Removing rows from a Delta table and from its past.

Deleting rows makes a new version; the old ones, their files and what Delta's log says of them stay. Here they go as
well, so that nothing of the rows is left in the storage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
from deltalake import write_deltalake
from pyarrow import parquet
from pyarrow.fs import FileSelector, PyFileSystem

from churn_platform.engine import identifier, literal
from churn_platform.resources.storage import Entry, _again_on_conflict, _reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb

    from churn_platform.resources.storage import TableStore

_RETENTION = {  # Delta's own, where a table says nothing else
    "delta.logRetentionDuration": "interval 30 days",
    "delta.deletedFileRetentionDuration": "interval 7 days",
}
_AT_ONCE = "interval 0 days"


@dataclass(frozen=True)
class Rows:
    """Which rows are meant: for each column that can tell, SQL that is true for them.

    Values belong into variables of the connection and not into the SQL, which ends up in messages.
    """

    conditions: dict[str, str]

    def condition(self, columns: Iterable[str]) -> str:
        """SQL that is true for the rows, in a table of these columns."""
        return " OR ".join(f"({self.conditions[name]})" for name in self.told_by(columns)) or "false"

    def told_by(self, columns: Iterable[str]) -> list[str]:
        """Those of the columns that can tell."""
        return [name for name in columns if name in self.conditions]


@dataclass(frozen=True)
class Removed:
    """What was removed from a table."""

    rows: int  # of its newest version
    versions: int  # older ones, which can be read no more


def holding(con: duckdb.DuckDBPyConnection, tables: TableStore, name: str, rows: Rows) -> list[str]:
    """The data files of a table that hold such rows, whichever version refers to them, or none.

    A file that cannot be read was left behind by a write that was killed. It may hold them, and counts.
    """
    files = tables.files(name)

    def holds(file: str) -> bool:
        try:
            with files.open_input_file(file) as stream:
                stored = parquet.ParquetFile(stream)
                columns = rows.told_by(stored.schema_arrow.names)
                if not columns:
                    return False
                con.register("_looked_at", stored.read(columns))
        except (pa.ArrowInvalid, OSError):
            return True
        return bool(con.execute(f"SELECT bool_or({rows.condition(columns)}) FROM _looked_at").fetchall()[0][0])

    return [file for file in _data_files(files) if holds(file)]


def remove(con: duckdb.DuckDBPyConnection, tables: TableStore, name: str, rows: Rows) -> Removed | None:
    """Remove rows from a table and from its past. None, and nothing changed, where no file of it holds such rows.

    The newest version is written once more without them, in one commit that names nobody; a commit of another process
    meanwhile is seen, and the rewriting begun again. Then the versions before it go: the log forgets them and their
    files are deleted, also those that a killed write left behind. Killed half-way, the next call finishes.

    The ledger stays as it is: nothing has to be computed again because rows have left.
    """
    files = tables.files(name)
    held = holding(con, tables, name, rows)
    if not held and not _unfinished(tables, name):
        return None
    before, removed = _versions(files), 0

    def commit() -> None:
        nonlocal removed
        removed = _rewrite(con, tables, name, rows)

    _again_on_conflict(commit)
    table = tables.open(name)
    said = table.metadata().configuration
    again = {key: said.get(key, usual) for key, usual in _RETENTION.items()}
    again = {key: _RETENTION[key] if value == _AT_ONCE else value for key, value in again.items()}
    table.alter.set_table_properties(dict.fromkeys(_RETENTION, _AT_ONCE))
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    referenced = {unquote(path) for path in pa.table(table.get_add_actions()).column("path").to_pylist()}
    left = set(_data_files(files)) - referenced
    for file in held:
        if file in left:
            files.delete_file(file)
    table.create_checkpoint()
    table.cleanup_metadata()
    tables.open(name).alter.set_table_properties(again)
    return Removed(removed, before)


def _rewrite(con: duckdb.DuckDBPyConnection, tables: TableStore, name: str, rows: Rows) -> int:
    """Commit the newest version without some rows; returns how many they were."""
    table = tables.open(name)  # this very version is replaced: a commit meanwhile is a conflict
    data = table.to_pyarrow_dataset()
    condition = rows.condition(data.schema.names)
    con.register("_whole", data)
    keys = table.metadata().partition_columns
    part = identifier(keys[0]) if keys else "''"
    counted = con.execute(f"SELECT {part}, count(*) FILTER ({condition}), count(*) FROM _whole GROUP BY 1").fetchall()
    changed = {key: (gone, whole) for key, gone, whole in counted if gone}
    if not changed:
        return 0
    for key, (gone, whole) in changed.items():
        if keys and gone == whole and key not in tables.entries(name):
            tables.enter(name, key, Entry("", ""))  # an empty window is known by its entry
    where = f"{part} IN ({', '.join(map(literal, changed))})" if keys else None
    rest = con.sql(f"SELECT * FROM _whole WHERE ({condition}) IS NOT TRUE AND {where or 'true'}")
    write_deltalake(table, _reader(rest), mode="overwrite", predicate=where)
    return sum(gone for gone, _ in changed.values())


def _unfinished(tables: TableStore, name: str) -> bool:
    """Whether a removal was killed after the rows had gone and before the log had forgotten them."""
    return _AT_ONCE in tables.open(name).metadata().configuration.values()


def _versions(files: PyFileSystem) -> int:
    return sum(entry.extension == "json" for entry in files.get_file_info(FileSelector("_delta_log")))


def _data_files(files: PyFileSystem) -> list[str]:
    there = files.get_file_info(FileSelector("", recursive=True))
    return [entry.path for entry in there if entry.is_file and not entry.path.startswith("_delta_log/")]

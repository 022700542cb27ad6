"""Exports: a list as files that other tools read, beside the tables.

They hold customers, so they are under the same rules as the tables: an erasure takes a person out, and pruning removes
them after as many days as an old version of a table. What was removed can be exported anew from the table.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import csv, parquet
from pyarrow.fs import FileSelector

from churn_platform.resources.removal import Removed

if TYPE_CHECKING:
    import duckdb

    from churn_platform.resources.removal import Rows
    from churn_platform.resources.storage import TableStore

FOLDER = "exports"
_PART = ".part"  # being written, or left by a process that was killed at it


def write(tables: TableStore, name: str, window: str, rows: pa.Table) -> list[str]:
    """Write rows of a window as Parquet and as CSV, in place of earlier ones; returns where they are."""
    files = tables.files()
    base = f"{FOLDER}/{name}/{window}"
    # first: killed half-way, no CSV may hold a row that its Parquet file does not
    if files.get_file_info(f"{base}.csv").is_file:
        files.delete_file(f"{base}.csv")
    for kind, put in (("parquet", parquet.write_table), ("csv", csv.write_csv)):
        # buffered: Delta's own stream takes bytes, and no buffers of Arrow's
        with pa.BufferedOutputStream(files.open_output_stream(f"{base}.{kind}{_PART}"), 2**20) as stream:
            put(rows, stream)
        files.move(f"{base}.{kind}{_PART}", f"{base}.{kind}")
    return [f"{tables.root}/{base}.{kind}" for kind in ("csv", "parquet")]


def remove(con: duckdb.DuckDBPyConnection, tables: TableStore, rows: Rows) -> Removed | None:
    """Take rows out of all exports; None where none of them holds such rows.

    A CSV is written anew from its Parquet file, or deleted where that is gone. What is half-written or cannot be read
    may hold them, and is deleted.
    """
    files, removed, changed = tables.files(), 0, 0
    there = {path for path, _ in _listed(tables)}
    for path in sorted(there, key=lambda path: (path.endswith(".csv"), path)):  # a CSV after its Parquet file
        base, _, kind = path.rpartition(".")
        if kind != "parquet":
            if f"{base}.parquet" not in there:
                files.delete_file(path)
            continue
        try:
            with files.open_input_file(path) as stream:
                whole = parquet.read_table(stream)
        except (pa.ArrowInvalid, OSError):
            files.delete_file(path)
            there.remove(path)
            changed += 1
            continue
        con.register("_exported", whole)
        where = rows.condition(whole.column_names)
        rest = con.execute(f"SELECT * FROM _exported WHERE ({where}) IS NOT TRUE").to_arrow_table().cast(whole.schema)
        if len(rest) < len(whole):
            removed, changed = removed + len(whole) - len(rest), changed + 1
            _, name, window = base.rsplit("/", 2)
            write(tables, name, window, rest)
    return Removed(removed, 0) if changed else None


def prune(tables: TableStore, days: int, dry_run: bool = False) -> tuple[int, int]:
    """Remove exports that were written more than so many days ago; returns how many files, and their bytes."""
    since = datetime.now(UTC) - timedelta(days=days)
    old = [(path, info) for path, info in _listed(tables) if info.mtime < since]
    if not dry_run:
        for path, _ in old:
            tables.files().delete_file(path)
    return len(old), sum(info.size for _, info in old)


def _listed(tables: TableStore) -> list[tuple[str, pa.fs.FileInfo]]:
    found = tables.files().get_file_info(FileSelector(FOLDER, recursive=True, allow_not_found=True))
    return [(entry.path, entry) for entry in found if entry.is_file]

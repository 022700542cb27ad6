"""The engine for heavy work: DuckDB, out of core, with the same limits everywhere.

Functions in `ml` take a connection and the names of views on it, and return SQL relations; nothing here knows what a
table means.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb

from churn_platform.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW_ROWS = 100_000


@contextmanager
def connection(time_zone: str = "UTC") -> Iterator[duckdb.DuckDBPyConnection]:
    """A private in-memory DuckDB that spills to the platform's home; times without a zone are in `time_zone`."""
    # a folder of its own: two connections of one process would overwrite each other's spilled blocks
    spill = settings().home / "spill" / f"{os.getpid()}-{secrets.token_hex(4)}"
    spill.parent.mkdir(parents=True, exist_ok=True)  # DuckDB makes a folder, and none above it
    with duckdb.connect(
        config={
            "memory_limit": settings().memory_limit,
            "temp_directory": str(spill),
            "autoinstall_known_extensions": False,  # nothing is downloaded at run time
        }
    ) as con:
        con.execute(f"SET TimeZone = {literal(time_zone)}")
        con.execute("SET enable_progress_bar = false")
        yield con


def share_work(con: duckdb.DuckDBPyConnection, rows: int) -> None:
    """Let a connection use several threads for many rows, and one for few, which would take longer to divide."""
    con.execute("RESET threads" if rows > FEW_ROWS else "SET threads = 1")


def digest(rows: duckdb.DuckDBPyRelation) -> str:
    """Sixteen hex digits that say whether two relations hold the same rows, in whatever order."""
    columns = ", ".join(map(identifier, rows.columns))
    counted = rows.aggregate(f"count(*), sum(CAST(hash({columns}) AS HUGEINT))").fetchall()[0]
    return short_hash(rows.columns, *counted)


def short_hash(*parts: object) -> str:
    """Sixteen hex digits of whatever can be written."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def identifier(name: str) -> str:
    """A name as SQL takes it, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """A text, number, date or time as an SQL literal."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"

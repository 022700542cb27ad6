"""The source `postgres`: a table or query of a team's own PostgreSQL, read in Arrow batches over ADBC."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa

from churn_platform.contract import as_utc
from churn_platform.engine import identifier, literal
from churn_platform.sources.base import (
    ORIGIN,
    SourceError,
    closed_by,
    declared_watermark,
    digest_of,
    horizon,
    reading,
)
from churn_platform.windows import Window, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from churn_platform.contract import Contract, Postgres, Table


class PostgresSource:
    """Reads a window's rows only: the time filter runs in PostgreSQL, where an index can serve it."""

    def __init__(self, contract: Contract, source: Postgres, salt: Callable[[], str] = str) -> None:
        self.contract = contract
        self.source = source
        self._salt = salt

    def watermark(self, con: duckdb.DuckDBPyConnection) -> datetime | None:  # noqa: ARG002
        """See `Source.watermark`."""
        now = datetime.now(UTC)
        declared = declared_watermark(self.contract, now)
        if declared is not None:
            return declared
        name = self.contract.main_table
        table = self.contract.tables.items()[name]
        with self._cursor(name) as cursor:
            time = _time(cursor, table)
            cursor.execute(f"SELECT max({time}) FROM {_relation(table)} WHERE {time} <= now()")
            (newest,) = cursor.fetch_arrow_table().column(0).to_pylist() or [None]
        if newest is not None and not isinstance(newest, date):
            raise SourceError(
                f"{table.time_column} holds no times in PostgreSQL but {type(newest).__name__} "
                f"(tables.{name}.time). Cast it there: give a `query` in place of `relation`."
            )
        return closed_by(None if newest is None else as_utc(newest, self.contract.zone), now, self.contract.zone)

    def rows(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:
        """See `Source.rows`.

        The view is a stream that can be read once: what is masked is masked on its way, and no engine that runs out of
        memory spills it to disk before. Columns that the contract does not keep are not asked for, and are NULL in it.
        """
        stream = self._stream(table, window)
        schema: Any = next(stream)
        con.register("_postgres_batches", pa.RecordBatchReader.from_batches(schema, stream))
        spec, view = self.contract.tables.items()[table], f"source_{table}"
        con.execute(
            f"CREATE OR REPLACE TEMP VIEW {identifier(view)} AS "
            f"SELECT *, {literal(spec.relation or 'query')} AS {ORIGIN} FROM _postgres_batches"
        )
        return view

    def _stream(self, name: str, window: Window) -> Iterator[Any]:
        """The schema of a window's rows, then their batches; the connection is closed with the stream."""
        table = self.contract.tables.items()[name]
        with self._cursor(name) as cursor:
            there, where = _columns(cursor, table), ""
            if table.time_column is not None:
                where = f" WHERE {self._bounds(_time(cursor, table), window)}"
            read = _read(there, table)
            listed = (identifier(n) if n in read else f"CAST(NULL AS text) AS {identifier(n)}" for n in there)
            cursor.execute(f"SELECT {', '.join(listed)} FROM {_relation(table)}{where}")
            batches = cursor.fetch_record_batch()
            yield batches.schema
            yield from batches

    def digest(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:  # noqa: ARG002
        """See `Source.digest`."""
        if self.contract.tables.items()[table].time_column is None or window not in self._looked_at():
            return ""
        return self._digests(table, [window]).get(window.key, "")

    def digests(self, con: duckdb.DuckDBPyConnection, table: str, thorough: bool = False) -> dict[str, str]:  # noqa: ARG002
        """See `Source.digests`; PostgreSQL computes them, in one query."""
        looked_at = self._looked_at() if thorough else []
        if self.contract.tables.items()[table].time_column is None or not looked_at:
            return {}
        return self._digests(table, looked_at)

    def _looked_at(self) -> list[Window]:
        """The newest windows that are over, as many as the contract says, and the first."""
        if not self.source.look_back_windows:
            return []
        over = list(windows(self.contract, datetime.now(UTC)))
        newest = over[-self.source.look_back_windows :]
        return newest if over[:1] == newest[:1] else [over[0], *newest]

    def _digests(self, name: str, looked_at: list[Window]) -> dict[str, str]:
        """Window key to digest. The sum of hashes is PostgreSQL's `hashtextextended` of the columns that are read."""
        table, salt = self.contract.tables.items()[name], self._salt()
        seed = int.from_bytes(bytes.fromhex(salt)[:8], "big", signed=True)
        with self._cursor(name) as cursor:
            there, time = _columns(cursor, table), _time(cursor, table)
            read = [identifier(column) for column in _read(there, table)]
            keys = " ".join(f"WHEN {self._bounds(time, window)} THEN {literal(window.key)}" for window in looked_at)
            where = " OR ".join(f"({self._bounds(time, window)})" for window in looked_at)
            cursor.execute(
                f"SELECT CASE {keys} END AS key, count(*) AS rows, "
                f"CAST(sum(hashtextextended(CAST(ROW({', '.join(read)}) AS text), {seed})) AS text) AS total "
                f"FROM {_relation(table)} WHERE {where} GROUP BY 1 ORDER BY 1"
            )
            found = cursor.fetch_arrow_table().to_pylist()
        how = reading(self.contract, name, salt)
        return {row["key"]: digest_of(how, row["rows"], int(row["total"])) for row in found}

    def _bounds(self, time: str, window: Window) -> str:
        """SQL for the rows of a window and, with the first window, for those that fit in none."""
        inside = f"{time} >= {_instant(window.start)} AND {time} < {_instant(window.end)}"
        start = as_utc(self.contract.time.start, self.contract.zone)
        if window.start != start:
            return inside
        beyond = horizon(self.contract, datetime.now(UTC))
        return f"{inside} OR {time} IS NULL OR {time} < {_instant(start)} OR {time} >= {_instant(beyond)}"

    @contextmanager
    def _cursor(self, table: str) -> Iterator[Any]:
        import adbc_driver_postgresql.dbapi as postgres

        url = os.environ.get(self.source.url_variable)
        if not url:
            raise SourceError(
                f"the environment variable {self.source.url_variable} is not set. It holds the source's address, "
                "postgresql://user:password@host/database (source.url_variable)."
            )
        try:
            with postgres.connect(url) as connection, connection.cursor() as cursor:
                cursor.execute(f"SET TIME ZONE {literal(self.contract.time.timezone)}")
                yield cursor
        except (postgres.Error, duckdb.Error, pa.ArrowException, OSError) as error:  # the last: of a stream
            reason = _without_secrets(str(error), url)
            raise SourceError(f"PostgreSQL refused the query for tables.{table}: {reason}") from None


def _relation(table: Table) -> str:
    if table.query is not None:
        return f"({table.query.rstrip().rstrip(';')}) AS source"
    return ".".join(identifier(part) for part in str(table.relation).split("."))


def _columns(cursor: Any, table: Table) -> list[str]:
    cursor.execute(f"SELECT * FROM {_relation(table)} LIMIT 0")
    return [column[0] for column in cursor.description]


def _read(there: list[str], table: Table) -> list[str]:
    """The columns that the contract keeps. An expression is not taken apart: what is named anywhere in one is read."""
    written = [(column.from_ or name).lower() for name, column in table.kept.items()]
    return [name for name in there if any(re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", w) for w in written)]


def _time(cursor: Any, table: Table) -> str:
    """SQL for when a row became known, as PostgreSQL has it; see `ml.ingestion.known_at`."""
    there = _columns(cursor, table)
    event = _written(there, table, str(table.time_column))
    if table.arrived_column is None:
        return event
    arrived = _written(there, table, table.arrived_column)
    return f"CASE WHEN {arrived} IS NOT NULL THEN greatest({event}, {arrived}) END"


def _written(there: list[str], table: Table, name: str) -> str:
    """A column as PostgreSQL knows it; what is not the name of a column is taken as an expression."""
    written = table.columns[name].from_ or name
    if written in there:
        return identifier(written)
    near = [column for column in there if column.lower() == written.lower()]
    return identifier(near[0]) if len(near) == 1 else f"({written})"


# What PostgreSQL quotes after these words is a name; whatever else it quotes may be a value of a row.
_NAMES = re.compile(r"\b(relation|column|schema|table|view|function|type|role|user|database|server at|near|key)\s+\Z")
_QUOTES = "\"'\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a"  # of the server's language


def _without_secrets(text: str, url: str) -> str:
    """The first line of an error message, without values, address or password, however they are written in it."""
    text = text.replace(url, "(address)")
    text = re.sub(r"\w+(\+\w+)?://[^\s\"']+", "(address)", text)
    secrets = re.findall(r"://[^:/@]*:(.*)@", url) + re.findall(r"password\s*=\s*'?([^\s']+)", url)
    for secret in secrets:
        for written in {secret, unquote(secret)} - {""}:
            text = text.replace(written, "(password)")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _without_values(lines[0]) if lines else "no reason given"


def _without_values(line: str) -> str:
    """A line up to the first quotation that is no name, and what follows the last: a value may hold quotes itself."""
    begin = 0
    while found := re.compile(f"[{_QUOTES}]").search(line, begin):
        after = re.compile(f"[{_QUOTES}]").search(line, found.end())
        if after is None or not _NAMES.search(line[: found.start()]):
            last = max(line.rfind(mark) for mark in _QUOTES)
            return f"{line[: found.start()]}(a value){line[last + 1 :]}"
        begin = after.end()
    return line


def _instant(moment: datetime) -> str:
    return f"TIMESTAMPTZ {literal(moment.isoformat())}"

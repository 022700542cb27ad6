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
from churn_platform.sources.base import ORIGIN, SourceError, closed_by, declared_watermark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from churn_platform.contract import Contract, Postgres, Table
    from churn_platform.windows import Window


class PostgresSource:
    """Reads a window's rows only: the time filter runs in PostgreSQL, where an index can serve it."""

    def __init__(self, contract: Contract, source: Postgres) -> None:
        self.contract = contract
        self.source = source

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
        """See `Source.rows`."""
        spec, view = self.contract.tables.items()[table], f"source_{table}"
        with self._cursor(table) as cursor:
            where = ""
            if spec.time_column is not None:
                where = f" WHERE {self._bounds(_time(cursor, spec), window)}"
            cursor.execute(f"SELECT * FROM {_relation(spec)}{where}")
            con.register("_postgres_batches", cursor.fetch_record_batch())
            try:
                con.execute(
                    f"CREATE OR REPLACE TEMP TABLE {identifier(view)} AS "
                    f"SELECT *, {literal(spec.relation or 'query')} AS {ORIGIN} FROM _postgres_batches"
                )
            finally:
                con.unregister("_postgres_batches")
        return view

    def _bounds(self, time: str, window: Window) -> str:
        """SQL for the rows of a window and, with the first window, for those that fit in none."""
        inside = f"{time} >= {_instant(window.start)} AND {time} < {_instant(window.end)}"
        start, end = as_utc(self.contract.time.start, self.contract.zone), self.contract.time.end
        if window.start != start:
            return inside
        late = f"{time} > now()" + (f" OR {time} >= {_instant(as_utc(end, self.contract.zone))}" if end else "")
        return f"{inside} OR {time} IS NULL OR {time} < {_instant(start)} OR {late}"

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
        except (postgres.Error, duckdb.Error, pa.ArrowException) as error:
            reason = _without_secrets(str(error), url)
            raise SourceError(f"PostgreSQL refused the query for tables.{table}: {reason}") from None


def _relation(table: Table) -> str:
    if table.query is not None:
        return f"({table.query.rstrip().rstrip(';')}) AS source"
    return ".".join(identifier(part) for part in str(table.relation).split("."))


def _time(cursor: Any, table: Table) -> str:
    """The time column as PostgreSQL knows it; what is not the name of a column is taken as an expression."""
    name = str(table.time_column)
    written = table.columns[name].from_ or name
    cursor.execute(f"SELECT * FROM {_relation(table)} LIMIT 0")
    there = [column[0] for column in cursor.description]
    if written in there:
        return identifier(written)
    near = [column for column in there if column.lower() == written.lower()]
    return identifier(near[0]) if len(near) == 1 else f"({written})"


def _without_secrets(text: str, url: str) -> str:
    """The first line of an error message, without the address or the password, however they are written in it."""
    text = text.replace(url, "(address)")
    text = re.sub(r"\w+(\+\w+)?://[^\s\"']+", "(address)", text)
    secrets = re.findall(r"://[^:/@]*:(.*)@", url) + re.findall(r"password\s*=\s*'?([^\s']+)", url)
    for secret in secrets:
        for written in {secret, unquote(secret)} - {""}:
            text = text.replace(written, "(password)")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


def _instant(moment: datetime) -> str:
    return f"TIMESTAMPTZ {literal(moment.isoformat())}"

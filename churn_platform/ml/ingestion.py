"""From a source's rows to the platform's: types, masking and windows, in one SQL statement.

A value that does not fit its column's type becomes NULL, and its row carries an issue that says so: nothing is
guessed, nothing is lost, and validation quarantines the row. Masking happens here too, in the same statement, so
that a raw personal value is never stored, nor quoted in an issue.
"""

from __future__ import annotations

import difflib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb

from churn_platform.contract import as_utc
from churn_platform.engine import identifier, literal
from churn_platform.ml.masking import masked
from churn_platform.ml.rules import ISSUES, column_rules
from churn_platform.sources.base import ORIGIN, SourceError

if TYPE_CHECKING:
    from churn_platform.contract import Column, Contract, Table
    from churn_platform.windows import Window

_BLANK = "nullif(trim({}), '')"
_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "float": "a finite number",
    "boolean": "true or false",
    "timestamp": "a date and time",
    "date": "a date",
}
_TEXT = ("VARCHAR",)


def typed_rows(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str, window: Window
) -> duckdb.DuckDBPyRelation:
    """The rows of a source view that belong to a window: typed, masked, with `_source` and `_issues`.

    A table without a time column lands whole with every window. A row whose time cannot be read, or that lies outside
    every window, belongs to the first window of the file that it came in: so it is seen once, and quarantined.
    The connection's time zone must be the contract's, and `masking.install_key` must have been called.

    Raises:
        SourceError: the view lacks a column that the contract names; all that lack are listed.
    """
    table = contract.tables.items()[table_name]
    sources = _source_expressions(con, table_name, table, view)
    selected, issues = [], []
    for name, column in table.kept.items():
        expression, source_type = sources[name]
        present, typed = _typed(column, expression, source_type, table.decimal)
        selected.append(f"{masked(column, typed)} AS {identifier(name)}")
        issues += _issues(name, column, present, typed)
    listed = f"nullif(concat_ws('; ', {', '.join(issues)}), '')" if issues else "NULL::VARCHAR"
    selected += [f"{ORIGIN}", f"{listed} AS {ISSUES}"]
    where = "true"
    if table.time_column is not None:
        expression, source_type = sources[table.time_column]
        _, time = _typed(table.columns[table.time_column], expression, source_type, table.decimal)
        where = _belongs(con, contract, view, time, window)
    return con.sql(f"SELECT {', '.join(selected)} FROM {identifier(view)} WHERE {where}")


def newest_time(con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str) -> datetime | None:
    """The newest readable time in a source view that is not in the future, or None.

    Raises:
        SourceError: the view lacks a column that the contract names.
    """
    table = contract.tables.items()[table_name]
    expression, source_type = _source_expressions(con, table_name, table, view)[str(table.time_column)]
    _, time = _typed(table.columns[str(table.time_column)], expression, source_type, table.decimal)
    row = con.execute(f"SELECT max(t) FROM (SELECT {time} AS t FROM {identifier(view)}) WHERE t <= now()").fetchone()
    newest = row[0] if row else None
    return None if newest is None else as_utc(newest, contract.zone)


def _source_expressions(
    con: duckdb.DuckDBPyConnection, table_name: str, table: Table, view: str
) -> dict[str, tuple[str, str]]:
    """For each column, SQL over the source view and the type that it has there."""
    described = con.execute(f"DESCRIBE {identifier(view)}").fetchall()
    there = {name: kind for name, kind, *_ in described if name != ORIGIN}
    found: dict[str, tuple[str, str]] = {}
    lacking: list[str] = []
    for name, column in table.kept.items():
        written = column.from_ if column.from_ is not None else name
        if written in there:
            found[name] = (identifier(written), there[written])
            continue
        try:
            kind = con.execute(f"DESCRIBE SELECT {written} AS value FROM {identifier(view)}").fetchall()[0][1]
        except duckdb.Error as error:
            near = difflib.get_close_matches(written, list(there), n=1, cutoff=0.5)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            detail = "" if column.from_ is None else f" ({str(error).splitlines()[0]})"
            lacking.append(f"  {name}: the source has no {written!r}{detail}.{meant}")
        else:
            found[name] = (f"({written})", kind)
    if lacking:
        raise SourceError(
            f"the source of tables.{table_name} does not fit the contract:\n" + "\n".join(lacking) + "\n"
            f"It has the columns: {', '.join(there)}.\n"
            f"Name the right one under tables.{table_name}.columns.<column>.from in contract.yaml."
        )
    return found


def _typed(column: Column, expression: str, source_type: str, decimal: str) -> tuple[str, str]:
    """SQL for the value as it came (NULL where there is none) and for the value in the column's own type."""
    text = source_type in _TEXT
    present = _BLANK.format(expression) if text else expression
    value = present
    if column.type in ("integer", "float") and text and decimal == ",":
        value = f"replace(replace({present}, '.', ''), ',', '.')"
    if column.type == "integer":
        wide = f"TRY_CAST({value} AS DECIMAL(38, 9))"
        return present, f"CASE WHEN {wide} = floor({wide}) THEN TRY_CAST({wide} AS BIGINT) END"
    if column.type == "float":
        number = f"TRY_CAST({value} AS DOUBLE)"
        return present, f"CASE WHEN isfinite({number}) THEN {number} END"
    if column.type == "boolean":
        word = f"lower(CAST({value} AS VARCHAR))"
        yes, no = "('true', 't', 'yes', 'y', '1', '1.0')", "('false', 'f', 'no', 'n', '0', '0.0')"
        return present, f"CASE WHEN {word} IN {yes} THEN true WHEN {word} IN {no} THEN false END"
    if column.type == "string":
        if source_type in ("DOUBLE", "FLOAT"):  # ids that went through pandas with a gap come as 17850.0
            whole = f"TRY_CAST({value} AS HUGEINT)"
            return present, f"CASE WHEN {value} = {whole} THEN CAST({whole} AS VARCHAR) ELSE CAST({value} AS VARCHAR) END"
        return present, f"CAST({value} AS VARCHAR)"
    kind = "TIMESTAMPTZ" if column.type == "timestamp" else "DATE"
    if text and column.format is not None:
        value = f"try_strptime({value}, {literal(column.format)})"
    return present, f"TRY_CAST({value} AS {kind})"


def _issues(name: str, column: Column, present: str, typed: str) -> list[str]:
    """SQL for what is wrong with a value's type and, where it will be masked, with the value itself."""
    personal = column.pii != "keep"
    shown = "'a value'" if personal else f"chr(39) || left(CAST({present} AS VARCHAR), 40) || chr(39)"
    words = literal(f" is not {_WORDS[column.type]}")
    # the value is judged before it is masked, so an unreadable one that will be hashed is noticed as well
    issues = [f"CASE WHEN ({present}) IS NOT NULL AND ({typed}) IS NULL THEN {literal(name + ': ')} || {shown} || {words} END"]
    if personal:
        issues += [
            f"CASE WHEN NOT ({rule.good}) THEN {literal(rule.reason)} END"
            for rule in column_rules(name, column, f"({typed})")
            if rule.expectation != "expect_column_values_to_not_be_null"
        ]
        if not column.nullable:
            issues.append(f"CASE WHEN ({present}) IS NULL THEN {literal(name + ' is missing')} END")
    return issues


def _belongs(con: duckdb.DuckDBPyConnection, contract: Contract, view: str, time: str, window: Window) -> str:
    """SQL that is true for the rows of a window, and for the misfits that travel with it."""
    start = as_utc(contract.time.start, contract.zone)
    last = datetime.now(UTC) + timedelta(days=1)
    end = min(as_utc(contract.time.end, contract.zone), last) if contract.time.end else last

    def between(first: datetime, after: datetime) -> str:
        return (
            f"({time} >= TIMESTAMPTZ {literal(first.isoformat())} AND {time} < TIMESTAMPTZ {literal(after.isoformat())})"
        )

    fits, inside = between(start, end), between(window.start, window.end)
    files = con.execute(
        f"SELECT {ORIGIN} FROM {identifier(view)} GROUP BY 1 "
        f"HAVING count(*) > count(*) FILTER ({fits}) "
        f"AND coalesce(min({time}) FILTER ({fits}), TIMESTAMPTZ {literal(start.isoformat())}) "
        f">= TIMESTAMPTZ {literal(window.start.isoformat())} "
        f"AND coalesce(min({time}) FILTER ({fits}), TIMESTAMPTZ {literal(start.isoformat())}) "
        f"< TIMESTAMPTZ {literal(window.end.isoformat())}"
    ).fetchall()
    if not files:
        return inside
    listed = ", ".join(literal(file) for (file,) in files)
    return f"{inside} OR ({ORIGIN} IN ({listed}) AND ({fits}) IS NOT TRUE)"

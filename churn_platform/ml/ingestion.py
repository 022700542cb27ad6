"""From a source's rows to the platform's: types, masking and windows, in one SQL statement.

A value that does not fit its column's type becomes NULL, and its row carries an issue that says so: nothing is
guessed, nothing is lost, and validation quarantines the row. Masking happens here too, in the same statement, so
that a raw personal value is never stored, nor quoted in an issue.
"""

from __future__ import annotations

import difflib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

from churn_platform.contract import as_utc
from churn_platform.engine import identifier, literal
from churn_platform.ml.masking import masked
from churn_platform.ml.rules import ISSUES, column_rules
from churn_platform.sources.base import ORIGIN, SourceError

if TYPE_CHECKING:
    from churn_platform.contract import Column, Contract, Table
    from churn_platform.windows import Window

# spaces, tabs, line ends, and the no-break space and byte order mark that spreadsheets leave
_BLANK = "nullif(trim({}, ' ' || chr(9) || chr(10) || chr(13) || chr(160) || chr(65279)), '')"
_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "float": "a finite number",
    "boolean": "true or false",
    "timestamp": "a date and time",
    "date": "a date",
}
_TEXT = ("VARCHAR",)
_FLOATS = ("DOUBLE", "FLOAT")
_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")


class _Value(NamedTuple):
    """What a contract's column is in the source: SQL over the source view, and the type that it has there."""

    sql: str
    kind: str
    failed: str | None = None  # for an expression: SQL that is true where it could not be computed
    written: str = ""  # the expression, for people


def typed_rows(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str, window: Window
) -> duckdb.DuckDBPyRelation:
    """The rows of a source view that belong to a window: typed, masked, with `_source` and `_issues`.

    A table without a time column lands whole with every window. A row whose time cannot be read, or that lies outside
    every window, belongs to the first window of the file that it came in: so it is seen once, and quarantined.
    The connection's time zone must be the contract's, and `masking.install_key` must have been called. The rows are
    read here and now, into a temporary table, so that whatever is wrong with the source is reported from here.

    Raises:
        SourceError: the view lacks a column that the contract names (all that lack are listed), or cannot be read.
    """
    table = contract.tables.items()[table_name]
    sources = _source_expressions(con, table_name, table, view)
    selected, issues = [], []
    for name, column in table.kept.items():
        present, typed = _typed(column, sources[name], table.decimal)
        selected.append(f"{masked(column, typed)} AS {identifier(name)}")
        issues += _issues(name, column, present, typed)
    listed = f"nullif(concat_ws('; ', {', '.join(issues)}), '')" if issues else "NULL::VARCHAR"
    selected += [f"{ORIGIN}", f"{listed} AS {ISSUES}"]
    where = "true"
    target = identifier(f"_typed_{table_name}")
    try:
        if table.time_column is not None:
            _, time = _typed(table.columns[table.time_column], sources[table.time_column], table.decimal)
            where = _belongs(con, contract, view, time, window)
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {target} AS "
            f"SELECT {', '.join(selected)} FROM {identifier(view)} WHERE {where}"
        )
    except duckdb.Error as error:
        raise SourceError(f"the source of tables.{table_name} cannot be read: {_without_values(error)}") from None
    return con.sql(f"SELECT * FROM {target}")


def newest_time(con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str) -> datetime | None:
    """The newest readable time in a source view that is not in the future, or None where there are no rows.

    Raises:
        SourceError: the view lacks a column that the contract names, or no time in it can be read.
    """
    table = contract.tables.items()[table_name]
    source = _source_expressions(con, table_name, table, view)[str(table.time_column)]
    column = table.columns[str(table.time_column)]
    present, time = _typed(column, source, table.decimal)
    newest, readable, rows, example = con.execute(
        f"SELECT max(t) FILTER (t <= now() AND isfinite(t)), count(t), count(*), min(p) FILTER (t IS NULL) "
        f"FROM (SELECT {time} AS t, left(CAST({present} AS VARCHAR), 40) AS p FROM {identifier(view)})"
    ).fetchall()[0]
    if newest is None and rows:
        such = f", such as {example!r}" if example is not None and column.pii == "keep" else ""
        what = f"none of its {rows:,} times can be read{such}." if not readable else "all its times lie in the future."
        remedy = 'Name the right column, or say with `format` how it is written: format: "%d/%m/%Y %H:%M".'
        raise SourceError(f"tables.{table_name}.columns.{table.time_column}: {what} {remedy}")
    return None if newest is None else as_utc(newest, contract.zone)


def _without_values(error: duckdb.Error) -> str:
    """The first line of DuckDB's message (the offending line itself comes later), with quoted values left out."""
    return re.sub(r"'[^']*'", "'...'", str(error).splitlines()[0])


def _source_expressions(con: duckdb.DuckDBPyConnection, table_name: str, table: Table, view: str) -> dict[str, _Value]:
    """For each column, what it is in the source."""
    described = con.execute(f"DESCRIBE {identifier(view)}").fetchall()
    there = {name: kind for name, kind, *_ in described if name != ORIGIN}
    by_case: dict[str, list[str]] = {}
    for column_there in there:
        by_case.setdefault(column_there.lower(), []).append(column_there)
    found: dict[str, _Value] = {}
    lacking: list[str] = []
    for name, column in table.kept.items():
        written = column.from_ if column.from_ is not None else name
        alike = [written] if written in there else by_case.get(written.lower(), [])
        if len(alike) == 1:
            found[name] = _Value(identifier(alike[0]), there[alike[0]])
            continue
        detail = ""
        # a bare word is never an expression: `user` would quietly be DuckDB's own user
        if column.from_ is not None and not re.fullmatch(r"\w+", written):
            value, reason = _expression(con, view, there, column, table.decimal)
            if value is not None:
                found[name] = value
                continue
            detail = f" ({reason})"
        near = difflib.get_close_matches(written.lower(), list(by_case), n=1, cutoff=0.5)
        meant = f" Did you mean {by_case[near[0]][0]!r}?" if near else ""
        lacking.append(f"  {name}: the source has no {written!r}{detail}.{meant}")
    if lacking:
        raise SourceError(
            f"the source of tables.{table_name} does not fit the contract:\n" + "\n".join(lacking) + "\n"
            f"It has the columns: {', '.join(there)}.\n{_advice(table_name, list(there), table)}"
        )
    return found


def _advice(table_name: str, there: list[str], table: Table) -> str:
    """What to do about missing columns."""
    here = f"tables.{table_name}"
    marks = [mark for mark in (",", ";", "\t", "|", " ") if mark in there[0]]
    if len(there) == 1 and marks and len(table.kept) > 1:
        written = {" ": "whitespace", "\t": r"\t"}.get(marks[0], marks[0])
        return f'All of it was read as one column. Set {here}.delimiter to what parts the columns, e.g. "{written}".'
    rename = f"Name the right one under {here}.columns.<column>.from in contract.yaml."
    if table.path is not None and any(re.fullmatch(r"[\d.,:/ -]+", name) for name in there):
        rename += f" If the first line holds values, not names, set {here}.header to false."
    return rename


def _expression(
    con: duckdb.DuckDBPyConnection, view: str, there: dict[str, str], column: Column, decimal: str
) -> tuple[_Value | None, str]:
    """An expression over the source's columns, or None and why it is none.

    A CSV's columns are text. Where an expression calculates with them, they are read as numbers, by the same rules as
    a column of numbers. A value that cannot be computed is NULL, and an issue.
    """
    written, reason, unreadable = str(column.from_), "", ""
    for attempt in ("as it stands", "with numbers"):
        sql = written
        if attempt == "with numbers":
            if not column.numeric:
                break
            sql, unreadable = _with_numbers(con, there, decimal, written)
        try:
            # TRY takes no aggregates or window functions, and WHERE no unnesting: one row in, one value out
            kind = con.execute(
                f"DESCRIBE SELECT TRY({sql}) AS value FROM {identifier(view)} WHERE ({sql}) IS NULL"
            ).fetchall()[0][1]
        except duckdb.Error as error:
            reason = reason or str(error).splitlines()[0]
        else:
            # [NULL] where the result is NULL, and NULL where there is none
            attempted = f"TRY(list_value({sql}))"
            failed = f"{attempted} IS NULL" + (f" OR {unreadable}" if unreadable else "")
            return _Value(f"{attempted}[1]", kind, f"({failed})", written), ""
    return None, reason


_ARITHMETIC = ("+", "-", "*", "/", "//", "%")


def _with_numbers(con: duckdb.DuckDBPyConnection, there: dict[str, str], decimal: str, written: str) -> tuple[str, str]:
    """An expression whose text columns are numbers where it calculates, and SQL that is true where one is not."""

    def tree(sql: str) -> Any:
        return json.loads(con.execute("SELECT json_serialize_sql(?)", [f"SELECT {sql}"]).fetchall()[0][0])

    parsed = tree(written)
    if parsed["error"]:
        return written, ""
    texts = {name.lower(): name for name, kind in there.items() if kind in _TEXT}
    unreadable: set[str] = set()

    def replaced(node: Any, calculates: bool) -> Any:
        if isinstance(node, list):
            return [replaced(child, calculates) for child in node]
        if not isinstance(node, dict):
            return node
        name = node["column_names"][-1].lower() if node.get("class") == "COLUMN_REF" else None
        if calculates and name in texts:
            column = identifier(texts[name])
            number = _number(_BLANK.format(column), decimal)
            unreadable.add(f"({_BLANK.format(column)} IS NOT NULL AND {number} IS NULL)")
            return tree(number)["statements"][0]["node"]["select_list"][0]
        arithmetic = node.get("class") == "FUNCTION" and node.get("function_name") in _ARITHMETIC
        return {key: replaced(child, arithmetic) for key, child in node.items()}

    parsed = replaced(parsed, False)
    sql = con.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(parsed)]).fetchall()[0][0]
    return sql.removeprefix("SELECT "), " OR ".join(sorted(unreadable))


def _number(text: str, decimal: str) -> str:
    """SQL for the finite number that a text is. With a decimal comma, a point may only stand between thousands."""
    if decimal == ",":
        shape = literal(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)?(,\d*)?([eE][+-]?\d+)?")
        plain = f"replace(replace({text}, '.', ''), ',', '.')"
        text = f"CASE WHEN regexp_full_match({text}, {shape}) THEN {plain} END"
    number = f"TRY_CAST({text} AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _typed(column: Column, source: _Value, decimal: str) -> tuple[str, str]:
    """SQL for the value as it came (NULL where there is none) and for the value in the column's own type."""
    text = source.kind in _TEXT
    value = _BLANK.format(source.sql) if text else source.sql
    if source.kind in _FLOATS and not column.numeric:
        value = f"nullif({value}, 'NaN')"  # how pandas writes a gap
    present = value
    if source.failed is not None:
        shown = literal(source.written)
        present = f"CASE WHEN {source.failed} THEN {shown} ELSE CAST({value} AS VARCHAR) END"
    as_typed = {
        "integer": _whole,
        "float": _finite,
        "boolean": _truth,
        "string": _text,
        "timestamp": _time,
        "date": _time,
    }
    return present, as_typed[column.type](column, source, value, decimal)


def _whole(_: Column, source: _Value, value: str, decimal: str) -> str:
    if source.kind in _FLOATS:
        return f"CASE WHEN {value} = floor({value}) THEN TRY_CAST({value} AS BIGINT) END"
    if source.kind in _TEXT and decimal == ",":
        plain = f"replace(replace({value}, '.', ''), ',', '.')"
        value = f"CASE WHEN {_number(value, decimal)} IS NOT NULL THEN {plain} END"
    wide = f"TRY_CAST({value} AS DECIMAL(38, 18))"
    return f"CASE WHEN {wide} = floor({wide}) THEN TRY_CAST({wide} AS BIGINT) END"


def _finite(_: Column, source: _Value, value: str, decimal: str) -> str:
    return _number(value, decimal if source.kind in _TEXT else ".")


def _truth(_: Column, _source: _Value, value: str, _decimal: str) -> str:
    word = f"lower(CAST({value} AS VARCHAR))"
    yes, no = "('true', 't', 'yes', 'y', '1', '1.0')", "('false', 'f', 'no', 'n', '0', '0.0')"
    return f"CASE WHEN {word} IN {yes} THEN true WHEN {word} IN {no} THEN false END"


def _text(_: Column, source: _Value, value: str, _decimal: str) -> str:
    plain = f"CAST({value} AS VARCHAR)"
    if source.kind not in _FLOATS:
        return plain
    whole = f"TRY_CAST({value} AS HUGEINT)"  # ids that went through pandas with a gap come as 17850.0
    return f"CASE WHEN {value} = {whole} THEN CAST({whole} AS VARCHAR) ELSE {plain} END"


def _time(column: Column, source: _Value, value: str, _decimal: str) -> str:
    number = source.kind in _WHOLE and column.format is not None  # 20240131
    if source.kind in _TEXT or number:
        if column.format is not None:
            value = f"try_strptime(CAST({value} AS VARCHAR), {literal(column.format)})"
        value = f"TRY_CAST({value} AS TIMESTAMPTZ)"  # a cast of text to DATE would overlook what follows the day
    return f"TRY_CAST({value} AS {'TIMESTAMPTZ' if column.type == 'timestamp' else 'DATE'})"


def _issues(name: str, column: Column, present: str, typed: str) -> list[str]:
    """SQL for what is wrong with a value's type and, where it will be masked, with the value itself."""
    personal = column.pii != "keep"
    # a value is quoted without the characters that hold issues apart
    plain = f"translate(left(CAST({present} AS VARCHAR), 40), chr(39) || chr(10) || chr(13) || ';', '    ')"
    shown = "'a value'" if personal else f"chr(39) || {plain} || chr(39)"
    words = literal(f" is not {_WORDS[column.type]}")
    # the value is judged before it is masked, so an unreadable one that will be hashed is noticed as well
    issues = [
        f"CASE WHEN ({present}) IS NOT NULL AND ({typed}) IS NULL THEN {literal(name + ': ')} || {shown} || {words} END"
    ]
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
        since, until = literal(first.isoformat()), literal(after.isoformat())
        return f"({time} >= TIMESTAMPTZ {since} AND {time} < TIMESTAMPTZ {until})"

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

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
from churn_platform.ml.rules import ISSUES, column_rules, key_of
from churn_platform.ml.text import TRIMMED
from churn_platform.sources.base import ORIGIN, SourceError, horizon

if TYPE_CHECKING:
    from churn_platform.contract import Column, Contract, Table
    from churn_platform.windows import Window

# Looking for all that is trimmed is slow, so a text that begins and ends with plain characters is let through before.
_BLANK = (
    "CASE WHEN regexp_full_match({0}, '[!-~]([ -~]*[!-~])?') THEN {0} "
    f"ELSE nullif(trim({{0}}, {literal(TRIMMED)}), '') END"
)
# What makes two ids of one that look the same: control and format characters, spaces that are none, fillers, variation
# selectors; and the sign for a character that could not be decoded, which makes one id of two.
_INVISIBLE = (
    r"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\x{00A0}\x{034F}\x{115F}\x{1160}\x{1680}\x{2000}-\x{200A}\x{202F}\x{205F}\x{2800}"
    r"\x{3000}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}\x{FFFD}]"
)
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
_WHOLE = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"),
)


class _Value(NamedTuple):
    """What a contract's column is in the source: SQL over the source view, and the type that it has there."""

    sql: str
    kind: str
    failed: str | None = None  # for an expression: SQL that is true where it could not be computed
    written: str = ""  # the expression, for people
    name: str = ""  # of the source's column, where it is one


def _column(name: str, kind: str) -> _Value:
    """A column of the source. Bytes are text, as older writers of Parquet have it; what is nested has no value."""
    sql = identifier(name)
    if kind == "BLOB":
        text = f"TRY(decode({sql}))"
        return _Value(text, "VARCHAR", f"({sql} IS NOT NULL AND {text} IS NULL)", "bytes", name)
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return _Value("NULL::VARCHAR", "VARCHAR", f"({sql} IS NOT NULL)", "a list or a structure", name)
    return _Value(sql, kind, name=name)


def typed_rows(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str, window: Window
) -> duckdb.DuckDBPyRelation:
    """The rows of a source view that belong to a window: typed, masked, with `_source` and `_issues`.

    A table without a time column lands whole with every window. Where the contract says when a row `arrived`, it
    belongs to the window in which it became known, else to that of its time. A misfit, whose time cannot be read or
    lies outside every window, belongs to the window with whose view it comes (`sources.base.Source.rows`), and will be
    quarantined.
    The connection's time zone must be the contract's, and `masking.install_key` must have been called. The rows are
    read here and now, into a temporary table, so that whatever is wrong with the source is reported from here.

    Raises:
        SourceError: the view lacks a column that the contract names (all that lack are listed), or cannot be read.
    """
    table = contract.tables.items()[table_name]
    sources = _source_expressions(con, table_name, table, view)
    selected, issues = [], _header_once_more(table, sources)
    ids = {table.customer, getattr(table, "order", None), *table.unique}
    for name, column in table.kept.items():
        present, typed = _typed(column, sources[name], table.decimal)
        selected.append(f"{masked(column, typed)} AS {identifier(name)}")
        issues += _issues(name, column, present, typed, may_quote(table))
        if name in ids and column.type == "string":
            words = literal(f"{name} holds a character that nobody sees")
            issues.append(f"CASE WHEN regexp_matches({typed}, {literal(_INVISIBLE)}) THEN {words} END")
    listed = f"nullif(concat_ws('; ', {', '.join(issues)}), '')" if issues else "NULL::VARCHAR"
    selected += [f"{ORIGIN}", f"{listed} AS {ISSUES}"]
    where = "true"
    target = identifier(f"_typed_{table_name}")
    try:
        if table.time_column is not None:
            where = _belongs(contract, known_at(table, sources), window)
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {target} AS "
            f"SELECT {', '.join(selected)} FROM {identifier(view)} WHERE {where}"
        )
    except duckdb.Error as error:
        raise SourceError(f"the source of tables.{table_name} cannot be read: {_without_values(error)}") from None
    if not key_of(contract, table_name):
        _require_single(con, contract, table_name, target, window)
    return con.sql(f"SELECT * FROM {target}")


def _header_once_more(table: Table, sources: dict[str, _Value]) -> list[str]:
    """SQL for an issue where a row of texts repeats the columns' names, as files that were put together have them."""
    if len(sources) < 2 or any(source.kind not in _TEXT or not source.name for source in sources.values()):
        return []
    repeated = " AND ".join(f"{sources[name].sql} = {literal(sources[name].name)}" for name in table.kept)
    return [f"CASE WHEN {repeated} THEN 'the header stands here once more' END"]


_FEWEST = 10  # different rows: of fewer it may be chance that each stands there twice


def _require_single(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, rows: str, window: Window
) -> None:
    """Refuse a window of which every row stands there twice or more: without a key, each would count so often.

    Raises:
        SourceError: it is so.
    """
    columns = ", ".join(map(identifier, contract.tables.items()[table_name].kept))
    # the estimate is off by a fifth at most, and spares the grouping of nearly every window
    seen, about = con.execute(f"SELECT count(*), approx_count_distinct(hash({columns})) FROM {rows}").fetchall()[0]
    if about > 0.75 * seen:
        return
    fewest, different = con.execute(
        f"SELECT min(times), count(*) FROM (SELECT count(*) AS times FROM {rows} GROUP BY {columns})"
    ).fetchall()[0]
    if different >= _FEWEST and fewest > 1:
        raise SourceError(
            f"every row of tables.{table_name} in the window {window.key} stands there more than once: {seen:,} rows, "
            f"{different:,} different ones. Export it again without the copies; or name under "
            f"tables.{table_name}.unique the columns that together may appear once only, and copies go to quarantine."
        )


def newest_time(con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str) -> datetime | None:
    """The newest readable time in a source view that is not in the future, or None where there are no rows.

    Raises:
        SourceError: the view lacks a column that the contract names, or no time in it can be read.
    """
    table = contract.tables.items()[table_name]
    sources = _source_expressions(con, table_name, table, view)
    column = table.columns[str(table.time_column)]
    present, _ = _typed(column, sources[str(table.time_column)], table.decimal)
    newest, readable, rows, example = con.execute(
        f"SELECT max(t) FILTER (t <= now() AND isfinite(t)), count(t), count(*), min(p) FILTER (t IS NULL) "
        f"FROM (SELECT {known_at(table, sources)} AS t, left(CAST({present} AS VARCHAR), 40) AS p "
        f"FROM {identifier(view)})"
    ).fetchall()[0]
    if newest is None and rows:
        such = f", such as {example!r}" if example is not None and may_quote(table) else ""
        what = f"none of its {rows:,} times can be read{such}." if not readable else "all its times lie in the future."
        remedy = 'Name the right column, or say with `format` how it is written: format: "%d/%m/%Y %H:%M".'
        raise SourceError(f"tables.{table_name}.columns.{table.time_column}: {what} {remedy}")
    return None if newest is None else as_utc(newest, contract.zone)


def surveyed(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str, salt: str
) -> list[tuple[str, str, int, int, int | None, int | None]]:
    """What one scan of a source view finds, per `_source` and window in which rows became known.

    Returns (`_source`, the key of the window, number of rows, sum of their hashes, first and last time in microseconds
    since 1970) of each. In place of a key stands "" where the time cannot be read, and "<" or ">" where it lies before
    or after the history. A hash is half of the MD5 of what the platform reads of a row, with `salt`: it does not depend
    on the engine's version, nor on the type that the file gives a value.

    Raises:
        SourceError: the view lacks a column that the contract names.
        duckdb.Error: it cannot be read.
    """
    table = contract.tables.items()[table_name]
    sources = _source_expressions(con, table_name, table, view)
    values = [_as_text(column, *_typed(column, sources[name], table.decimal)) for name, column in table.kept.items()]
    start = literal(as_utc(contract.time.start, contract.zone).isoformat())
    outside = f"WHEN t IS NULL THEN '' WHEN t < TIMESTAMPTZ {start} THEN '<'"
    if contract.time.end is not None:
        outside += f" WHEN t >= TIMESTAMPTZ {literal(as_utc(contract.time.end, contract.zone).isoformat())} THEN '>'"
    first = literal(contract.time.start.isoformat())
    day = "CAST(t AS DATE)"
    window = {
        "monthly": f"CAST(date_trunc('month', {day}) AS DATE)",
        "weekly": f"DATE {first} + CAST(({day} - DATE {first}) // 7 * 7 AS INTEGER)",
        "daily": day,
    }[contract.time.cadence]
    time = known_at(table, sources)
    con.execute("SET VARIABLE source_salt = ?", [salt])
    return con.execute(
        f"SELECT {ORIGIN}, coalesce(o, CAST(w AS VARCHAR)), count(*), sum(h), min(epoch_us(t)), max(epoch_us(t)) FROM ("
        f"SELECT {ORIGIN}, t, h, o, CASE WHEN o IS NULL THEN {window} END AS w FROM ("
        f"SELECT *, CASE {outside} END AS o FROM ("
        f"SELECT {ORIGIN}, CASE WHEN isfinite({time}) THEN {time} END AS t, "
        f"CAST(md5_number_lower(concat_ws(chr(31), getvariable('source_salt'), {', '.join(values)})) AS HUGEINT) AS h "
        f"FROM {identifier(view)}))) GROUP BY {ORIGIN}, o, w"
    ).fetchall()


def _as_text(column: Column, present: str, typed: str) -> str:
    """SQL for what is read of a value, as text: an instant counts, not the zone that it is shown in."""
    text = f"epoch_us({typed})" if column.type == "timestamp" else typed
    return f"coalesce(CAST({text} AS VARCHAR), '?' || CAST({present} AS VARCHAR), '')"


def inside(con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str, window: Window) -> str:
    """SQL that is true for a source view's rows that became known within a window.

    Where the source has times, it says so once more of the bare column: a reader of Parquet then skips row groups.
    """
    table = contract.tables.items()[table_name]
    sources = _source_expressions(con, table_name, table, view)
    source = sources[str(table.time_column)]
    where = _between(known_at(table, sources), window.start, window.end)
    bare = source.failed is None and (source.kind == "DATE" or source.kind.startswith("TIMESTAMP"))
    if table.arrived_column is None and bare:
        # two days cover every offset of a zone, and the time of day that a column of type date leaves out
        since, until = window.start - timedelta(days=2), window.end + timedelta(days=2)
        if source.kind != "TIMESTAMP WITH TIME ZONE":
            since, until = (moment.astimezone(contract.zone).replace(tzinfo=None) for moment in (since, until))
        kind = "TIMESTAMP" if since.tzinfo is None else "TIMESTAMPTZ"
        where += f" AND {source.sql} >= {kind} {literal(since)} AND {source.sql} < {kind} {literal(until)}"
    return where


def known_at(table: Table, sources: dict[str, _Value]) -> str:
    """SQL for the instant at which a row became known: that of its time or of its arrival, whichever is later.

    A row whose time nobody can read became known when it arrived; without a readable arrival nobody knows.
    """

    def instant(name: str) -> str:
        return f"CAST({_typed(table.columns[name], sources[name], table.decimal)[1]} AS TIMESTAMPTZ)"

    event = instant(str(table.time_column))
    if table.arrived_column is None:
        return event
    arrived = instant(table.arrived_column)
    return f"CASE WHEN {arrived} IS NOT NULL THEN greatest({event}, {arrived}) END"


def stored(con: duckdb.DuckDBPyConnection, column: Column, text: str) -> object:
    """A value of a column as the tables hold it, from a text of the source; None where it does not fit the type."""
    _, typed = _typed(column, _Value("written", "VARCHAR"), ".")
    return con.execute(f"SELECT {masked(column, typed)} FROM (SELECT ?::VARCHAR AS written)", [text]).fetchall()[0][0]


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
            found[name] = _column(alike[0], there[alike[0]])
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
    number = f"CASE WHEN NOT contains({text}, '_') THEN TRY_CAST({text} AS DOUBLE) END"  # 1_000 is a number in SQL only
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
    if source.kind in _WHOLE:
        return f"TRY_CAST({value} AS BIGINT)"
    if source.kind in _FLOATS or source.kind.startswith("DECIMAL"):
        return f"CASE WHEN {value} = floor({value}) THEN TRY_CAST({value} AS BIGINT) END"
    if source.kind in _TEXT and decimal == ",":
        plain = f"replace(replace({value}, '.', ''), ',', '.')"
        value = f"CASE WHEN {_number(value, decimal)} IS NOT NULL THEN {plain} END"
    wide = f"TRY_CAST({value} AS DECIMAL(38, 18))"
    if source.kind in _TEXT:
        wide = f"CASE WHEN NOT contains({value}, '_') THEN {wide} END"
    exact = f"WHEN {wide} = floor({wide}) THEN TRY_CAST({wide} AS BIGINT)"
    if source.kind in _TEXT:  # digits alone need no wide decimal, which takes three hundred times as long to read
        exact = f"WHEN regexp_full_match({value}, '[+-]?[0-9]+(\\.0*)?') THEN TRY_CAST({value} AS BIGINT) {exact}"
    return f"CASE {exact} END"


def _finite(_: Column, source: _Value, value: str, decimal: str) -> str:
    if source.kind not in _TEXT:
        number = f"TRY_CAST({value} AS DOUBLE)"
        return f"CASE WHEN isfinite({number}) THEN {number} END"
    return _number(value, decimal)


def _truth(_: Column, _source: _Value, value: str, _decimal: str) -> str:
    word = f"lower(CAST({value} AS VARCHAR))"
    yes, no = "('true', 't', 'yes', 'y', '1', '1.0')", "('false', 'f', 'no', 'n', '0', '0.0')"
    return f"CASE WHEN {word} IN {yes} THEN true WHEN {word} IN {no} THEN false END"


def _text(_: Column, source: _Value, value: str, _decimal: str) -> str:
    plain = f"CAST({value} AS VARCHAR)"
    if source.kind in _TEXT:
        # as `text.plain`; DuckDB's function would cut a text at a NUL
        return f"CASE WHEN contains({plain}, chr(0)) THEN {plain} ELSE nfc_normalize({plain}) END"
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


def may_quote(table: Table) -> bool:
    """Whether a message may quote a value: in a row that has shifted, a personal one may stand in any column."""
    return all(column.pii == "keep" for column in table.columns.values())


def _issues(name: str, column: Column, present: str, typed: str, quote: bool) -> list[str]:
    """SQL for what is wrong with a value's type and, where it will be masked, with the value itself."""
    personal = column.pii != "keep"
    # a value is quoted without the characters that hold issues apart
    plain = f"translate(left(CAST({present} AS VARCHAR), 40), chr(39) || chr(10) || chr(13) || ';', '    ')"
    shown = "'a value'" if not quote else f"chr(39) || {plain} || chr(39)"
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


def _belongs(contract: Contract, time: str, window: Window) -> str:
    """SQL that is true for the rows of a window, and for misfits."""
    start = as_utc(contract.time.start, contract.zone)
    fits = _between(time, start, horizon(contract, datetime.now(UTC)))
    return f"{_between(time, window.start, window.end)} OR {fits} IS NOT TRUE"


def _between(time: str, first: datetime, after: datetime) -> str:
    since, until = literal(first.isoformat()), literal(after.isoformat())
    return f"({time} >= TIMESTAMPTZ {since} AND {time} < TIMESTAMPTZ {until})"

"""What files of nobody-knows-what hold: the type of each column, and how its dates and numbers are written.

It is what a draft of a contract is made of (`drafting.draft`). Files are read as the platform will read them; types are
told from a sample of rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from glob import escape, glob
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import duckdb

from churn_platform.contract import Column, ColumnType, Table
from churn_platform.drafting.names import PERSONAL, WHEN, column_name, has
from churn_platform.engine import identifier, literal
from churn_platform.sources import delimited
from churn_platform.sources.base import ORIGIN, SourceError
from churn_platform.sources.files import WHITESPACE, dialect_of, file_kind, rows_of, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Encoding = Literal["utf-8", "latin-1", "utf-16"]

SAMPLE = 100_000  # rows
_FEW = 6
_MOST = 0.95  # so many of a column's values have to be of a type; of fewer it is text
_MISSING = ("NA", "N/A", "n/a", "NULL", "null", "None", "nan", "NaN", "?", "-")
_DAYS = (
    *("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d"),
    *("%Y-%m", "%Y/%m", "%b-%y", "%b %Y"),
    *("%d/%m/%y", "%m/%d/%y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y"),
)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_MONEY = "$€£ "
_THOUSANDS = r"[+-]?\d{1,3}(,\d{3})*(\.\d+)?"
_POINTS = r"[+-]?\d{1,3}(\.\d{3})*(,\d+)?"
_INTEGER, _FLOAT = r"[+-]?\d{1,18}", r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_PARQUET_TYPES: tuple[tuple[str, ColumnType], ...] = (
    (r"(TINY|SMALL|BIG)?INT(EGER)?|U(TINY|SMALL)?INT(EGER)?", "integer"),
    (r"U?HUGEINT|UBIGINT", "string"),  # wider than the platform's whole numbers
    (r"FLOAT|DOUBLE|DECIMAL.*", "float"),
    (r"BOOLEAN", "boolean"),
    (r"DATE", "date"),
    (r"TIMESTAMP.*", "timestamp"),
)


@dataclass(frozen=True)
class Field:
    """A column of a file."""

    name: str
    column: str  # what a contract calls it
    type: ColumnType
    present: float  # the share of rows with a value
    distinct: int  # different values in the sample
    values: tuple[str, ...] = ()  # all of them, where there are few
    epoch: str = ""  # of a time that is a number: in seconds or milliseconds since 1970
    format: str = ""  # of a date, in strptime's codes, where it is not ISO
    other_format: str = ""  # another one that reads it as well
    decimal_comma: bool = False
    signs: str = ""  # those in numbers that are to be left out: of thousands, of currencies
    point_zero: bool = False  # whole numbers written as 17850.0
    whole: bool = True  # whether all of the values are of the type, not only most of them
    missing: tuple[str, ...] = ()  # words that stand for a missing value, of a number or a date
    doubtful: tuple[str, ...] = ()  # words in a text that may stand for a missing value
    named: float = 1.0  # the share of rows with a value that is none of those words
    emails: bool = False

    @property
    def is_time(self) -> bool:
        """Whether it says when."""
        return self.type in ("timestamp", "date")

    @property
    def is_personal(self) -> bool:
        """Whether its name or its values say that they are about a person."""
        return self.emails or has(self.name, PERSONAL)


@dataclass(frozen=True)
class File:
    """A file, or several of the same columns."""

    path: str  # a file or a glob
    view: str  # of all rows
    rows: int
    sampled: int
    fields: tuple[Field, ...]
    written: Table  # how: encoding, header, delimiter

    def field(self, name: str) -> Field | None:
        """The column of a name, whatever its case."""
        return next((field for field in self.fields if field.name.lower() == name.lower()), None)


def survey(con: duckdb.DuckDBPyConnection, paths: Iterable[str]) -> list[File]:
    """Look at files; those that lie in one folder and have the same columns are taken for one table.

    Raises:
        SourceError: one of them cannot be read, or holds no rows.
    """
    tables: dict[tuple[str, str, tuple[str, ...]], list[_Read]] = {}
    patterns = {path: [path] if Path(path).exists() else sorted(glob(path)) for path in paths}  # noqa: PTH207 (absolute)
    seen: set[str] = set()
    for path, files in patterns.items():
        if not files:
            raise SourceError(f"there is no file {path}. A draft is made from files of this computer.")
        for file in files:
            if not Path(file).is_file():
                raise SourceError(f"{file} is no file.")
            if file != escape(file):
                raise SourceError(f"{file}: a contract takes [, * and ? in a path for a pattern. Rename the file.")
            if file in seen:
                continue
            seen.add(file)
            kind = file_kind(file)
            if kind is None:
                raise SourceError(
                    f"{file} is neither Parquet nor CSV: its name ends in none of .parquet, .csv, .tsv, ..."
                )
            read = _read(con, file)
            tables.setdefault((str(Path(file).parent), kind, read.dialect.names), []).append(read)
    return [_surveyed(con, alike, f"surveyed_{number}") for number, alike in enumerate(tables.values())]


class _Read(NamedTuple):
    """A file, and how it is read."""

    path: str
    written: Table
    dialect: delimited.Dialect


def _read(con: duckdb.DuckDBPyConnection, file: str) -> _Read:
    """Find out how a file is written."""
    reasons: list[SourceError] = []
    for encoding in _encodings(file):
        table = Table(columns={"_": Column(type="string")}, customer="_", encoding=encoding)
        try:
            dialect = dialect_of(con, file, table)
            if file_kind(file) == "parquet":
                return _Read(file, table, dialect)
            if dialect.delimiter == " " or (len(dialect.names) == 1 and " " in dialect.names[0].strip()):
                table = table.model_copy(update={"delimiter": WHITESPACE})
            if _are_values(dialect.names):
                table = table.model_copy(update={"header": False})
                dialect = dialect._replace(names=tuple(f"column{place}" for place in range(len(dialect.names))))
            # what lies below the first line
            con.execute(f"SELECT count(COLUMNS(*)) FROM {rows_of(con, [file], {file: dialect.text}, table)}")
        except SourceError as error:
            reasons.append(error)
        except duckdb.Error as error:
            reasons.append(unreadable(file, "transactions", error))
        else:
            return _Read(file, table, dialect)
    raise reasons[0]


def _are_values(first_line: Sequence[str]) -> bool:
    """Whether a first line holds values and no names: an address, a date, an amount; or numbers in half of it."""
    numbers = [re.fullmatch(r"[+-]?[\d.,:/ -]+", field) is not None for field in first_line]
    value = r"[^@\s]+@[^@\s]+\.[^@\s]+|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}( .*)?|[+-]?\d+[.,]\d+"
    return 2 * sum(numbers) >= len(numbers) or any(re.fullmatch(value, field) for field in first_line)


def _encodings(file: str) -> tuple[Encoding, ...]:
    try:
        with Path(file).open("rb") as stream:
            return ("utf-16",) if stream.read(2) in (b"\xff\xfe", b"\xfe\xff") else ("utf-8", "latin-1")
    except OSError as error:
        raise SourceError(f"{file} cannot be read ({error.strerror}).") from None


def _surveyed(con: duckdb.DuckDBPyConnection, alike: list[_Read], view: str) -> File:
    files, written = [read.path for read in alike], alike[0].written
    source = rows_of(con, files, {read.path: read.dialect.text for read in alike}, written)
    chosen = f"USING SAMPLE reservoir({SAMPLE} ROWS) REPEATABLE (7)"
    try:
        con.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * EXCLUDE ({ORIGIN}) FROM {source}")
        con.execute(f"CREATE OR REPLACE TEMP TABLE {view}_sample AS FROM {view} {chosen}")
    except duckdb.Error as error:
        raise unreadable(files[0], "transactions", error) from None
    rows, sampled = (con.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in (view, f"{view}_sample"))
    if not rows:
        raise SourceError(f"{files[0]} holds no rows.")
    columns = con.execute(f"DESCRIBE {view}").fetchall()
    called = delimited.apart(column_name(name) for name, *_ in columns)
    fields = tuple(
        _epoch(con, f"{view}_sample", _field(con, f"{view}_sample", name, column, kind))
        for (name, kind, *_), column in zip(columns, called, strict=True)
    )
    return File(_path_of(files), view, rows, sampled, fields, written)


def _path_of(files: list[str]) -> str:
    """One path for files of one folder: the file, or the narrowest glob of them.

    Raises:
        SourceError: other files match that glob too.
    """
    if len(files) == 1:
        return files[0]
    # numbers at the edge will differ in files yet to come: orders_2023-01.csv and orders_2023-02.csv are orders_*.csv
    begin = re.sub(r"[\d-]+$", "", _beginning(files))
    rest = [file.removeprefix(begin)[::-1] for file in files]
    pattern = f"{begin}*{re.sub(r'^[0-9-]+', '', _beginning(rest)[::-1])}"
    others = set(glob(pattern)) - set(files)  # noqa: PTH207 (absolute)
    if others:
        raise SourceError(
            f"{pattern} would also match {min(others)}, which was not named or has other columns. Put it into another "
            "folder."
        )
    return pattern


def _beginning(names: list[str]) -> str:
    """What all of some names begin with."""
    first, last = min(names), max(names)
    return first[: next((place for place, sign in enumerate(first) if last[place] != sign), len(first))]


def _field(con: duckdb.DuckDBPyConnection, sample: str, name: str, called: str, kind: str) -> Field:
    """What one column holds."""
    column = identifier(name)
    for pattern, known in _PARQUET_TYPES:
        if re.fullmatch(pattern, kind):
            present, distinct, whole = con.execute(
                f"SELECT count({column}) / count(*), count(DISTINCT {column}), "
                + (f"count({column}) > 0 AND bool_and({column} = floor({column}))" if known == "float" else "false")
                + f" FROM {sample}"
            ).fetchall()[0]
            return Field(
                name, called, known, present, distinct, _few(con, sample, column, distinct), point_zero=bool(whole)
            )
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW _column AS SELECT nullif(trim(CAST({column} AS VARCHAR)), '') AS v FROM {sample}"
    )
    words = ", ".join(map(literal, _MISSING))
    found, named = con.execute(
        f"SELECT coalesce(list(DISTINCT v) FILTER (v IN ({words})), []), "
        f"count(*) FILTER (v NOT IN ({words})) / count(*) FROM _column"
    ).fetchall()[0]
    told = _told(con, [])
    if told["type"] == "string" and found:  # is it but for these words a number or a date?
        without = _told(con, found)
        if without["type"] != "string":
            told = {**without, "missing": tuple(sorted(found))}
    told.update(doubtful=tuple(sorted(found)), named=named)
    present, distinct = con.execute(
        f"SELECT count(v) / count(*), count(DISTINCT v) "
        f"FROM (SELECT {but(told.get('missing', ()), 'v')} AS v FROM _column)"
    ).fetchall()[0]
    return Field(name, called, present=present, distinct=distinct, values=_few(con, "_column", "v", distinct), **told)


def _epoch(con: duckdb.DuckDBPyConnection, sample: str, field: Field) -> Field:
    """The column as a time, where its name says so and its numbers count seconds or milliseconds since 1970."""
    if field.type not in ("integer", "float") or not has(field.name, (*WHEN, "epoch", "unix")):
        return field
    column = f"TRY_CAST({identifier(field.name)} AS DOUBLE)"
    least, most = con.execute(f"SELECT min({column}), max({column}) FROM {sample}").fetchall()[0]
    for epoch, unit in (("s", 1), ("ms", 1000)):
        if least is not None and 6e8 * unit < least <= most < 4e9 * unit:  # 1989 to 2096
            return replace(field, type="timestamp", epoch=epoch)
    return field


def _few(con: duckdb.DuckDBPyConnection, relation: str, column: str, distinct: int) -> tuple[str, ...]:
    """All values, where they are few."""
    if not 2 <= distinct <= _FEW:
        return ()
    query = f"SELECT DISTINCT CAST({column} AS VARCHAR) FROM {relation} WHERE {column} IS NOT NULL ORDER BY 1"
    return tuple(value for (value,) in con.execute(query).fetchall())


def but(words: Sequence[str], value: str) -> str:
    """SQL for a value that is missing where it is one of some words."""
    return f"CASE WHEN {value} NOT IN ({', '.join(map(literal, words))}) THEN {value} END" if words else value


def _told(con: duckdb.DuckDBPyConnection, missing: list[str]) -> dict[str, Any]:
    """The type of a column of texts, and how its values are written."""
    rows = f"(SELECT {but(missing, 'v')} AS v FROM _column)"
    tests = {
        "integer": f"regexp_full_match(v, {literal(_INTEGER)})",
        "padded": r"regexp_full_match(v, '0\d+|\d{19,}')",  # a number would not be the same
        "float": f"regexp_full_match(v, {literal(_FLOAT)})",
        "point_zero": r"regexp_full_match(v, '\d+\.0+')",
        "comma": rf"regexp_full_match(replace(v, ',', '.'), {literal(_FLOAT)})",
        "thousands": rf"regexp_full_match(trim(v, {literal(_MONEY)}), {literal(_THOUSANDS)})",
        "points": rf"regexp_full_match(trim(v, {literal(_MONEY)}), {literal(_POINTS)})",
        "plain": f"regexp_full_match(trim(v, {literal(_MONEY)}), {literal(_FLOAT)})",
        "boolean": "lower(v) IN ('true', 'false')",
        "iso": r"regexp_matches(v, '^\d{4}-\d{1,2}-\d{1,2}') AND TRY_CAST(v AS TIMESTAMPTZ) IS NOT NULL",
        "day": r"regexp_full_match(v, '\d{4}-\d{1,2}-\d{1,2}')",
        "email": r"regexp_full_match(v, '[^@\s]+@[^@\s]+\.[^@\s]+')",
    }
    counted = ", ".join(f"count(*) FILTER ({test}) AS {name}" for name, test in tests.items())
    row = con.execute(f"SELECT count(v), {counted} FROM {rows}").fetchall()[0]
    many, counts = row[0], dict(zip(tests, row[1:], strict=True))

    def most(name: str) -> bool:
        return bool(many) and counts[name] >= _MOST * many

    if most("iso"):
        return {"type": "date" if most("day") else "timestamp", "whole": counts["iso"] == many}
    written = _date_formats(con, rows) if many else []
    if written and not (most("integer") and written[0] != "%Y%m%d"):
        other = written[1] if len(written) > 1 else ""
        return {"type": "timestamp" if "%M" in written[0] else "date", "format": written[0], "other_format": other}
    numbers: dict[str, dict[str, Any]] = {
        "integer": {"type": "integer"},
        "float": {"type": "float", "point_zero": most("point_zero")},
        "thousands": {"type": "float", "signs": f"{_MONEY},"},  # 1,200 is one of them, where no value says otherwise
        "plain": {"type": "float", "signs": _MONEY},
        "comma": {"type": "float", "decimal_comma": True},
        "points": {"type": "float", "decimal_comma": True, "signs": f"{_MONEY}."},
    }
    readings = {**({} if counts["padded"] else numbers), "boolean": {"type": "boolean"}}
    for test, how in readings.items():
        if most(test):
            return {**how, "whole": counts[test] == many}
    return {"type": "string", "emails": most("email")}


def _date_formats(con: duckdb.DuckDBPyConnection, rows: str) -> list[str]:
    """The formats by which most values are read: day first before month first where both do."""
    con.execute(f"CREATE OR REPLACE TEMP TABLE _dates AS SELECT v FROM {rows} WHERE v IS NOT NULL LIMIT 5000")
    (likely,) = con.execute(
        r"SELECT avg(CAST(regexp_matches(v, '^\d{1,4}[-/. ]([A-Za-z]{3,9}|\d{1,2})[-/. ]\d{2,4}|^(19|20)\d{6}|"
        r"^[A-Z][a-z]{2,8} \d{1,2}, \d{4}|^\d{4}[-/]\d{2}$|^[A-Z][a-z]{2}[- ]\d{2,4}$') AS INTEGER)) FROM _dates"
    ).fetchall()[0]
    if likely < _MOST:
        return []
    formats = [day + clock for day, clock in product(_DAYS, _CLOCKS)]
    for few in (50, 5000):  # most formats are out of the question after a few values
        # a year of two digits is read by %Y as well: as one of the first century
        tried = "".join(
            f", count(*) FILTER (year(try_strptime(v, {literal(each)})) BETWEEN 1900 AND 2200)" for each in formats
        )
        total, *read = con.execute(f"SELECT count(*){tried} FROM (FROM _dates LIMIT {few})").fetchall()[0]
        counts = dict(zip(formats, read, strict=True))
        formats = [each for each in formats if counts[each] >= 0.8 * total]
    return [each for each in formats if counts[each] == max(counts.values()) and counts[each] >= _MOST * total]

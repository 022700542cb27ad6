"""How CSV files are written: found out once for a file, said to the reader in full, never guessed again.

A reader that guesses finds another way to make sense of a damaged file: it skips lines, takes a row for the header, or
reads all of it as one column. Told the columns and the marks, it names the line that does not fit instead.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import duckdb

from churn_platform.engine import identifier, literal
from churn_platform.sources.base import ORIGIN, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from churn_platform.contract import Table


class Dialect(NamedTuple):
    """The names of a file's columns and, of a CSV, what parts them, what holds a field together, and its escape."""

    names: tuple[str, ...]
    delimiter: str = ""
    quote: str = ""
    escape: str = ""

    @classmethod
    def of(cls, text: str) -> Dialect:
        """The dialect that `text` says."""
        names, *marks = json.loads(text)
        return cls(tuple(names), *marks)

    @property
    def text(self) -> str:
        """The dialect as it is kept in the index."""
        return json.dumps(self)


def dialect(con: duckdb.DuckDBPyConnection, file: str, table: Table) -> Dialect:
    """How a file is written. The whole of it is looked at: the first quoted field may stand anywhere.

    Raises:
        duckdb.Error: it cannot be read.
        SourceError: it is damaged, or has no first line.
    """
    if file.lower().endswith(".gz"):
        _require_intact(file)
    delimiter, quote, escape = _sniffed(con, file, table, "ignore_errors = true")
    if quote == "'":
        # two apostrophes in a text would make one row of two, so they count as quotes only where nothing else fits
        try:
            delimiter, quote, escape = _sniffed(con, file, table, "quote = '\"'")
        except duckdb.Error:
            quote = "'"
    # where nothing is quoted, a lone quote is damage and not a value
    quote, escape = quote or '"', escape or quote or '"'
    delimiter = table.delimiter or delimiter
    fields = _first_line(file, table, delimiter, quote, escape)
    if not fields:
        raise SourceError(f"{file} holds no rows. Check that the export finished.")
    require_names(file, fields, table)
    counted = [f"column{place}" for place in range(len(fields))]
    names = [name or count for name, count in zip(fields, counted, strict=True)] if table.header else counted
    return Dialect(tuple(names), delimiter, quote, escape)


def _sniffed(con: duckdb.DuckDBPyConnection, file: str, table: Table, option: str) -> list[str]:
    """The delimiter, quote and escape that DuckDB finds; the quote is empty where nothing is quoted."""
    options = [f"encoding = {literal(table.encoding)}", "skip = 0", "all_varchar = true", "sample_size = -1", option]
    if table.delimiter is not None:
        options.append(f"delim = {literal(table.delimiter)}")
    found = con.execute(
        f"SELECT Delimiter, Quote, Escape FROM sniff_csv({literal(file)}, {', '.join(options)})"
    ).fetchall()[0]
    return ["" if mark == "(empty)" else mark for mark in found]


def require_names(file: str, fields: list[str], table: Table) -> None:
    """Refuse a first line that holds values instead of names, where values may be personal: they would be quoted.

    Raises:
        SourceError: none of the fields is the name of a column, nor stands in an expression over columns.
    """
    if not table.header or all(column.pii == "keep" for column in table.columns.values()):
        return
    written = " \0 ".join(column.from_ or name for name, column in table.columns.items()).lower()
    if not any(re.search(rf"(?<!\w){re.escape(field.lower())}(?!\w)", written) for field in fields if field):
        raise SourceError(
            f"{file}: no column that the contract names stands in its first line. Correct the names, or export it with "
            "a header; where no file has one, say header: false, and the columns are column0, column1, ..."
        )


def _require_intact(file: str) -> None:
    """Compare a gzipped file with its checksum, which DuckDB leaves out. Raises SourceError where they differ."""
    import gzip
    import zlib

    import fsspec

    try:
        with fsspec.open(file, "rb") as packed, gzip.open(packed) as plain:
            while plain.read(1 << 20):
                pass
    except PermissionError:
        raise SourceError(
            f"{file} cannot be read: there is no permission to. Let the platform's user read it."
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        remedy = "The file is damaged or was only half written: export it again."
        raise SourceError(f"{file} cannot be read: it does not fit its own checksum. {remedy}") from None


def _first_line(file: str, table: Table, delimiter: str, quote: str, escape: str) -> list[str]:
    """The fields of a file's first line, which may be several where a quoted name holds line ends.

    Raises:
        SourceError: it is none of a CSV's.
    """
    import gzip
    import io

    import fsspec

    encoding = "utf-8-sig" if table.encoding == "utf-8" else table.encoding
    double = escape == quote
    with fsspec.open(file, "rb") as opened:
        packed = file.lower().endswith(".gz")
        data = gzip.GzipFile(fileobj=opened) if packed else opened
        # of the lines below, what is no text in this encoding is left to DuckDB, which names the line
        text = io.TextIOWrapper(data, encoding, errors="replace", newline="")
        lines = csv.reader(
            text, delimiter=delimiter, quotechar=quote, doublequote=double, escapechar=None if double else escape
        )
        try:
            fields = [field.strip() for field in next((line for line in lines if line), [])]
        except csv.Error as error:
            raise SourceError(f"{file} cannot be read: its first line is none of a CSV's ({error}).") from None
    if any(sign in field for field in fields for sign in ("\ufffd", "\0")):
        raise SourceError(
            f"{file} cannot be read: its first line is not {table.encoding}. Set the table's `encoding` in "
            "contract.yaml to the file's: utf-8, latin-1, utf-16."
        )
    return fields


def reader(dialects: dict[str, str], table: Table) -> str:
    """SQL for the rows of files, all text: a guess of the reader's must not change a value.

    Files that are written alike are read together; columns are put together by name.
    """
    alike: dict[Dialect, list[str]] = defaultdict(list)
    for file, text in dialects.items():
        alike[Dialect.of(text)].append(file)
    parts = []
    for written, files in alike.items():
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in apart(written.names))
        parts.append(
            f"SELECT * FROM read_csv([{', '.join(map(literal, files))}], columns = {{{columns}}}, "
            f"auto_detect = false, header = {literal(table.header)}, delim = {literal(written.delimiter)}, "
            f"quote = {literal(written.quote)}, escape = {literal(written.escape)}, "
            f"encoding = {literal(table.encoding)}, filename = '{ORIGIN}', hive_partitioning = false)"
        )
    return f"({' UNION ALL BY NAME '.join(parts)})"


def apart(names: Iterable[str]) -> list[str]:
    """Names of which none stands twice, whatever its case: the second `paid` is `paid_1`."""
    found: dict[str, str] = {}
    for name in names:
        free, count = name, 0
        while free.lower() in found:
            count += 1
            free = f"{name}_{count}"
        found[free.lower()] = free
    return list(found.values())


def parquet(con: duckdb.DuckDBPyConnection, file: str) -> Dialect:
    """The names of a Parquet file's columns, as they stand there. Raises duckdb.Error where it cannot be read."""
    tree = con.execute(f"SELECT name, coalesce(num_children, 0) FROM parquet_schema({literal(file)})").fetchall()
    names, inside = [], 0
    for name, children in tree[1:]:
        if not inside:
            names.append(name)
        inside = inside - 1 if inside else 0
        inside += children
    return Dialect(tuple(names))


def require_alike(table_name: str, table: Table, dialects: dict[str, str]) -> None:
    """Refuse files in which a column that the contract names stands twice, or is lacking while others have it.

    Which of two is meant nobody can know; and a column that is missing would be read as gaps.

    Raises:
        SourceError: it is so; the message names the file and the column.
    """
    columns = {file: Dialect.of(text).names for file, text in dialects.items() if text}
    there = {name.lower() for names in columns.values() for name in names}
    wanted = {name: (column.from_ or name).lower() for name, column in table.kept.items()}
    for file, names in columns.items():
        own = [name.lower() for name in names]
        for name, written in wanted.items():
            where = f"tables.{table_name}.columns.{name}"
            if own.count(written) > 1:
                raise SourceError(
                    f"{file} has two columns {written!r} ({where}), and nobody can know which is meant. "
                    "Give them different names in the export."
                )
            if written in there and written not in own:
                raise SourceError(
                    f"{file} lacks the column {written!r} ({where}), which other files have. Export it again with the "
                    "column. If older files are right without it, say so in the contract, with nullable: true and "
                    f"from: coalesce({identifier(written)}, NULL)."
                )

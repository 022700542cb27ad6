"""The source `files`: Parquet or CSV, one file or a glob, on local disk or in S3."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from churn_platform.engine import identifier, literal
from churn_platform.ml.ingestion import newest_time
from churn_platform.sources.base import ORIGIN, SourceError, closed_by, declared_watermark

if TYPE_CHECKING:
    from churn_platform.contract import Contract, Table
    from churn_platform.windows import Window

_PARQUET = (".parquet", ".pq")
WHITESPACE = "whitespace"  # the delimiter of a table whose columns stand apart by any number of spaces
_CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


class FilesSource:
    """A team's own files. Paths in the contract are relative to the contract's folder."""

    def __init__(self, contract: Contract, folder: Path) -> None:
        self.contract = contract
        self.folder = folder
        self._dialects: dict[tuple[object, ...], str] = {}

    def path(self, table: str) -> str:
        """The file or glob of a table, absolute."""
        path = str(self.contract.tables.items()[table].path)
        return path if "://" in path else str(self.folder / path)

    def watermark(self, con: duckdb.DuckDBPyConnection) -> datetime | None:
        """See `Source.watermark`."""
        now = datetime.now(UTC)
        declared = declared_watermark(self.contract, now)
        if declared is not None:
            return declared
        name = self.contract.main_table
        view = self._view(con, name)
        try:
            newest = newest_time(con, self.contract, name, view)
        except duckdb.Error as error:
            raise unreadable(self.path(name), name, error) from None
        return closed_by(newest, now, self.contract.zone)

    def rows(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:  # noqa: ARG002
        """See `Source.rows`; files are read whole, whatever the window."""
        return self._view(con, table)

    def _view(self, con: duckdb.DuckDBPyConnection, name: str) -> str:
        table, path, view = self.contract.tables.items()[name], self.path(name), f"source_{name}"
        files = self._files(con, path, name)
        listed = "[" + ", ".join(literal(file) for file in files) + "]"
        kinds = {_kind(file) for file in files}
        if len(kinds) != 1:
            raise SourceError(f"{path} matches both Parquet and CSV files. Point tables.{name}.path at one kind.")
        try:
            if kinds == {"parquet"}:
                reader = _parquet(listed)
            elif table.delimiter == WHITESPACE:
                reader = _columns_apart(con, listed, table)
            else:
                reader = _csv(listed, table, self._dialect(con, files, table))
            con.execute(
                f"CREATE OR REPLACE VIEW {identifier(view)} AS "
                f"SELECT * REPLACE (parse_filename({ORIGIN}) AS {ORIGIN}) FROM {reader}"
            )
            rows = con.execute(f"SELECT 1 FROM {identifier(view)} LIMIT 1").fetchall()
            if not rows and name == self.contract.main_table:
                raise SourceError(f"{path} holds no rows. Check that the export finished (tables.{name}.path).")
        except duckdb.Error as error:
            raise unreadable(path, name, error) from None
        return view

    def _files(self, con: duckdb.DuckDBPyConnection, path: str, name: str) -> dict[str, int]:
        """The files that a path matches, with their sizes."""
        if path.startswith("s3://"):
            found = _objects(con, path, name)
        else:
            there = con.execute("SELECT file FROM glob(?) ORDER BY file", [path]).fetchall()
            found = {file: Path(file).stat().st_size for (file,) in there}
        files = {file: size for file, size in found.items() if _kind(file) is not None}
        if not files:
            kinds = ", ".join([*_PARQUET, *_CSV])
            raise SourceError(f"no file matches {path} (tables.{name}.path). Files end in {kinds}.")
        empty = [file for file, size in files.items() if size == 0]
        if empty:
            raise SourceError(f"{empty[0]} is an empty file (0 bytes). Export it again, or remove it.")
        return files

    def _dialect(self, con: duckdb.DuckDBPyConnection, files: dict[str, int], table: Table) -> str:
        """How CSV files are written, found out once: whoever asks DuckDB anew with every query pays a scan for it.

        Whole files are looked at: the first quoted field may stand anywhere. Where files differ, DuckDB looks again.
        """
        options = _options(table)
        for file, size in files.items():
            stamp = None if file.startswith("s3://") else Path(file).stat().st_mtime_ns
            known = (file, size, stamp, options)
            if known not in self._dialects:
                found = con.execute(
                    f"SELECT Delimiter, Quote, Escape FROM sniff_csv({literal(file)}, {options}, sample_size = -1)"
                ).fetchall()[0]
                delimiter, quote, escape = ("" if mark == "(empty)" else mark for mark in found)
                given = [] if table.delimiter is not None else [f"delim = {literal(delimiter)}"]
                given += [f"quote = {literal(quote)}", f"escape = {literal(escape)}"]
                self._dialects[known] = ", ".join(given)
        dialects = {text for key, text in self._dialects.items() if key[0] in files and key[-1] == options}
        return dialects.pop() if len(dialects) == 1 else "sample_size = -1"


def _objects(con: duckdb.DuckDBPyConnection, path: str, name: str) -> dict[str, int]:
    """The objects in S3 that match, with their sizes; DuckDB reads them through the same client."""
    import fsspec

    try:
        filesystem = fsspec.filesystem("s3", use_listings_cache=False)  # a daemon must see what arrives
        if "s3" not in con.list_filesystems():
            con.register_filesystem(filesystem)
        listed = filesystem.glob(path, detail=True)
    except Exception as error:  # noqa: BLE001 - of s3fs, aiobotocore or the network: they share no class
        raise SourceError(
            f"{path} cannot be listed (tables.{name}.path): {type(error).__name__}: {str(error)[:200]}. "
            "Check the bucket's name, the credentials and AWS_ENDPOINT_URL."
        ) from None
    return {f"s3://{file}": int(details["size"]) for file, details in sorted(listed.items())}


def _kind(file: str) -> str | None:
    lower = file.lower()
    return "parquet" if lower.endswith(_PARQUET) else "csv" if lower.endswith(_CSV) else None


def _parquet(files: str) -> str:
    return f"read_parquet({files}, filename = '{ORIGIN}', union_by_name = true, hive_partitioning = false)"


def _options(table: Table) -> str:
    """What the contract says of a CSV. All is text: a guess of the reader's must not change a value."""
    header = "true" if table.header else "false"
    options = ["all_varchar = true", f"header = {header}", f"encoding = {literal(table.encoding)}"]
    if table.delimiter is not None:
        options.append(f"delim = {literal(table.delimiter)}")
    return ", ".join(options)


def _csv(files: str, table: Table, dialect: str) -> str:
    options = [_options(table), dialect, f"filename = '{ORIGIN}'", "union_by_name = true", "hive_partitioning = false"]
    return f"read_csv({files}, {', '.join(options)})"


def _columns_apart(con: duckdb.DuckDBPyConnection, files: str, table: Table) -> str:
    """Text whose columns stand apart by any number of spaces or tabs. A field too many makes its whole row unreadable.

    Every file has the header of the first, or none of them has one.
    """
    # 0x01 stands in no text, so that a line is one field
    lines = (
        f"read_csv({files}, columns = {{'line': 'VARCHAR'}}, auto_detect = false, header = false, delim = chr(1), "
        f"quote = '', escape = '', encoding = {literal(table.encoding)}, filename = '{ORIGIN}')"
    ).replace("chr(1)", "'\x01'")
    parts = r"regexp_split_to_array(trim(line, ' ' || chr(9) || chr(13) || chr(65279)), '[ \t]+')"
    split = f"SELECT {parts} AS parts, {ORIGIN} FROM {lines} WHERE trim(line, ' ' || chr(9) || chr(13)) <> ''"
    first = con.execute(f"SELECT parts FROM ({split}) LIMIT 1").fetchall()
    header: list[str] = first[0][0] if first else []
    names = header if table.header else [f"column{place}" for place in range(len(header))]
    fields = ", ".join(
        f"CASE WHEN len(parts) <= {len(names)} THEN parts[{place}] END AS {identifier(name)}"
        for place, name in enumerate(names, 1)
    )
    titles = "[" + ", ".join(map(literal, header)) + "]"
    where = f" WHERE parts <> {titles}" if table.header else ""
    return f"(SELECT {fields}, {ORIGIN} FROM ({split}){where})"


def unreadable(path: str, table: str, error: duckdb.Error) -> SourceError:
    """DuckDB's message without the offending line itself, which may hold personal data."""
    text = str(error)
    line = re.search(r"[Ll]ine:? (\d+)", text)
    first = text.splitlines()[0]
    where = f" (line {line.group(1)})" if line else ""
    hint = ""
    if "utf-8" in text.lower() or "unicode" in text.lower() or "encoded" in text.lower():
        hint = f" Set tables.{table}.encoding to the file's encoding, e.g. latin-1."
    elif "Magic bytes" in text or "Parquet" in text or "parquet" in text:
        hint = " The file is damaged or was only half written: export it again."
    elif "CSV" in text or "delimiter" in text:
        hint = f" Check the file there; tables.{table}.delimiter and encoding say how it is written."
    return SourceError(f"{path} cannot be read{where}: {first}{hint}")

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
_CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


class FilesSource:
    """A team's own files. Paths in the contract are relative to the contract's folder."""

    def __init__(self, contract: Contract, folder: Path) -> None:
        self.contract = contract
        self.folder = folder

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
        reader = _parquet(listed) if kinds == {"parquet"} else _csv(listed, table)
        try:
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

    def _files(self, con: duckdb.DuckDBPyConnection, path: str, name: str) -> list[str]:
        if path.startswith("s3://"):
            found = _objects(con, path, name)
        else:
            there = con.execute("SELECT file FROM glob(?) ORDER BY file", [path]).fetchall()
            found = {file: Path(file).stat().st_size for (file,) in there}
        files = [file for file in found if _kind(file) is not None]
        if not files:
            kinds = ", ".join([*_PARQUET, *_CSV])
            raise SourceError(f"no file matches {path} (tables.{name}.path). Files end in {kinds}.")
        empty = [file for file in files if found[file] == 0]
        if empty:
            raise SourceError(f"{empty[0]} is an empty file (0 bytes). Export it again, or remove it.")
        return files


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


def _csv(files: str, table: Table) -> str:
    """CSV as text: types are the contract's business, and a guess of the reader's must not change a value."""
    options = [
        "all_varchar = true",
        f"filename = '{ORIGIN}'",
        "union_by_name = true",
        "header = true",
        "sample_size = -1",
    ]
    options += ["hive_partitioning = false", f"encoding = {literal(table.encoding)}"]
    if table.delimiter is not None:
        options.append(f"delim = {literal(table.delimiter)}")
    return f"read_csv({files}, {', '.join(options)})"


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

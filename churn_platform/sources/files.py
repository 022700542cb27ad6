"""The source `files`: Parquet or CSV, one file or a glob, on local disk or in S3."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from churn_platform.engine import identifier, literal
from churn_platform.ml.ingestion import inside, newest_time, surveyed
from churn_platform.ml.rules import key_of
from churn_platform.sources import delimited
from churn_platform.sources.base import ORIGIN, SourceError, closed_by, declared_watermark, reading
from churn_platform.sources.index import Entry, Group, Index, Known, columns_of

if TYPE_CHECKING:
    from churn_platform.contract import Contract, Table
    from churn_platform.windows import Window

_PARQUET = (".parquet", ".pq")
WHITESPACE = "whitespace"  # the delimiter of a table whose columns stand apart by any number of spaces
_CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_ATTEMPTS = 3  # to find files at rest


class FilesSource:
    """A team's own files. Paths in the contract are relative to the contract's folder.

    The source is what lies there now. What a file holds is found out by one scan and kept in an index, so that a look
    at the source opens new and changed files only, and a window is read from the files that hold rows of it.
    """

    def __init__(self, contract: Contract, folder: Path, index: Index | None = None) -> None:
        self.contract = contract
        self.folder = folder
        self.index = index or Index()
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
        known = self._known(con, name, now)
        newest = known.newest()
        if newest is not None:
            moment = datetime.fromtimestamp(newest // 1_000_000, UTC).replace(microsecond=newest % 1_000_000)
            return closed_by(moment, now, self.contract.zone)
        view = self._view(con, name, "source", list(known.entries), known)
        return closed_by(newest_time(con, self.contract, name, view), now, self.contract.zone)

    def rows(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:
        """See `Source.rows`. Only files that hold rows of the window are read, and of Parquet the row groups with them.

        A table without time is read whole.
        """
        view = f"source_{table}"
        if self.contract.tables.items()[table].time_column is None:
            return self._all_rows(con, table, view)
        known = self._known(con, table, datetime.now(UTC))
        self._require_no_copy(table, known, window)
        carriers, others = known.holders(window)
        parts = []
        try:
            if others:
                read = self._view(con, table, f"{view}_of_window", others, known)
                where = inside(con, self.contract, table, read, window)
                parts.append(f"SELECT * FROM {identifier(read)} WHERE {where}")
            if carriers:
                parts.append(f"SELECT * FROM {identifier(self._view(con, table, f'{view}_carriers', carriers, known))}")
            if not parts:
                nothing = self._view(con, table, f"{view}_nothing", list(known.entries)[:1], known)
                parts.append(f"SELECT * FROM {identifier(nothing)} WHERE false")
            con.execute(f"CREATE OR REPLACE VIEW {identifier(view)} AS {' UNION ALL BY NAME '.join(parts)}")
        except duckdb.Error as error:
            raise unreadable(self.path(table), table, error) from None
        return view

    def digest(self, con: duckdb.DuckDBPyConnection, table: str, window: Window) -> str:
        """See `Source.digest`."""
        return self.digests(con, table).get(window.key, "")

    def digests(self, con: duckdb.DuckDBPyConnection, table: str, thorough: bool = False) -> dict[str, str]:  # noqa: ARG002
        """See `Source.digests`; the index knows, so that `thorough` makes no difference."""
        if self.contract.tables.items()[table].time_column is None:
            return {}
        return self._known(con, table, datetime.now(UTC)).digests(self._reading(table))

    def _require_no_copy(self, name: str, known: Known, window: Window) -> None:
        """Refuse a window of which two files hold the very same rows: without a key, each would count twice.

        Raises:
            SourceError: it is so.
        """
        if key_of(self.contract, name):
            return  # a row that stands twice goes to quarantine
        first: dict[tuple[int, int], str] = {}
        for file, entry in sorted(known.entries.items()):
            for group in entry.groups:
                if group.key != window.key:
                    continue
                other = first.setdefault((group.rows, group.total), file)
                if other != file:
                    raise SourceError(
                        f"{file} and {other} hold the same {group.rows:,} rows of the window {window.key} "
                        f"(tables.{name}.path). Remove one of the files; or name under tables.{name}.unique the "
                        "columns that together may appear once only, and copies go to quarantine."
                    )

    # -- the index

    def _reading(self, name: str) -> str:
        return reading(self.contract, name, self.index.salt)

    def _known(self, con: duckdb.DuckDBPyConnection, name: str, now: datetime) -> Known:
        """What is known of the files that a table's path matches now; those that are new or have changed are scanned.

        Raises:
            SourceError: they cannot be read, hold nothing, or do not come to rest.
        """
        path, how = self.path(name), self._reading(name)
        for attempt in range(_ATTEMPTS):
            files = self._files(con, path, name)
            if self._unknown(name, files, how):
                self.index.load(con, name)
            unknown = self._unknown(name, files, how)
            entries = {file: entry for file, entry in self.index.entries(name).items() if file in files}
            if unknown:
                try:
                    scanned = self._scan(con, name, unknown, entries, how)
                except SourceError:
                    if attempt + 1 < _ATTEMPTS and self._files(con, path, name) != files:
                        continue  # a file was replaced or taken away while it was read
                    raise
                after = self._files(con, path, name)
                entries.update({file: entry for file, entry in scanned.items() if after.get(file) == files[file]})
                entries = {file: entry for file, entry in entries.items() if after.get(file) == entry.stamp}
                self.index.remember(name, entries)
                if after != files:
                    continue
            if name == self.contract.main_table and not any(entry.rows for entry in entries.values()):
                raise SourceError(f"{path} holds no rows. Check that the export finished (tables.{name}.path).")
            table = self.contract.tables.items()[name]
            delimited.require_alike(name, table, {file: entry.dialect for file, entry in entries.items()})
            return Known(self.contract, entries, now)
        raise SourceError(
            f"{path} changes whenever it is read: somebody is still writing there (tables.{name}.path). Write files "
            "under another name, and rename them when they are whole."
        )

    def _unknown(self, name: str, files: dict[str, str], how: str) -> dict[str, str]:
        known = self.index.entries(name)
        return {
            file: stamp
            for file, stamp in files.items()
            if file not in known or known[file].stamp != stamp or known[file].reading != how
        }

    def _scan(
        self, con: duckdb.DuckDBPyConnection, name: str, files: dict[str, str], known: dict[str, Entry], how: str
    ) -> dict[str, Entry]:
        """What files hold, found in one scan of them all."""
        table, path = self.contract.tables.items()[name], self.path(name)
        others = [entry for file, entry in known.items() if file not in files and entry.reading == how]
        try:
            dialects = self._dialects_of(con, files, table)
            reader = rows_of(con, list(files), dialects, table)
            con.execute(f"CREATE OR REPLACE VIEW {identifier(f'scan_{name}')} AS SELECT * FROM {reader}")
            columns = {column: kind for column, kind in _described(con, f"scan_{name}").items() if column != ORIGIN}
            view = self._completed(con, f"scan_{name}", columns_of(others))
            found = surveyed(con, self.contract, name, view, self.index.salt)
        except duckdb.Error as error:
            raise unreadable(path, name, error) from None
        groups: dict[str, list[Group]] = {file: [] for file in files}
        for file, key, rows, total, first, last in found:
            groups[file].append(Group(key, rows, int(total), first, last))
        return {
            file: Entry(stamp, how, dialects.get(file, ""), columns, tuple(groups[file]))
            for file, stamp in files.items()
        }

    # -- reading

    def _view(self, con: duckdb.DuckDBPyConnection, name: str, view: str, files: list[str], known: Known) -> str:
        """A view of some files whose dialects and columns are known; a column that only others have is NULL in it."""
        dialects = {file: known.entries[file].dialect for file in files}
        self._make(con, name, view, files, dialects)
        return self._completed(con, view, columns_of(list(known.entries.values())))

    def _all_rows(self, con: duckdb.DuckDBPyConnection, name: str, view: str) -> str:
        path = self.path(name)
        files = self._files(con, path, name)
        try:
            table = self.contract.tables.items()[name]
            dialects = self._dialects_of(con, files, table)
            delimited.require_alike(name, table, dialects)
            self._make(con, name, view, list(files), dialects)
            rows = con.execute(f"SELECT 1 FROM {identifier(view)} LIMIT 1").fetchall()
        except duckdb.Error as error:
            raise unreadable(path, name, error) from None
        if not rows and name == self.contract.main_table:
            raise SourceError(f"{path} holds no rows. Check that the export finished (tables.{name}.path).")
        return view

    def _make(
        self, con: duckdb.DuckDBPyConnection, name: str, view: str, files: list[str], dialects: dict[str, str]
    ) -> None:
        con.execute(
            f"CREATE OR REPLACE VIEW {identifier(view)} AS SELECT * REPLACE (parse_filename({ORIGIN}) AS {ORIGIN}) "
            f"FROM {rows_of(con, files, dialects, self.contract.tables.items()[name])}"
        )

    def _completed(self, con: duckdb.DuckDBPyConnection, view: str, columns: dict[str, str]) -> str:
        """A view with the columns added, as NULLs, that other files of the table have and these have not."""
        there = {column.lower() for column in _described(con, view)}
        lacking = [
            f"CAST(NULL AS {kind}) AS {identifier(name)}" for name, kind in columns.items() if name.lower() not in there
        ]
        if not lacking:
            return view
        whole = f"{view}_completed"
        con.execute(
            f"CREATE OR REPLACE VIEW {identifier(whole)} AS SELECT *, {', '.join(lacking)} FROM {identifier(view)}"
        )
        return whole

    def _files(self, con: duckdb.DuckDBPyConnection, path: str, name: str) -> dict[str, str]:
        """The files that a path matches, with what tells one state of a file from another."""
        if path.startswith("s3://"):
            found = _objects(con, path, name)
        else:
            found = {}
            for (file,) in con.execute("SELECT file FROM glob(?) ORDER BY file", [path]).fetchall():
                try:
                    state = Path(file).stat()
                except FileNotFoundError:  # taken away since it was listed
                    continue
                found[file] = (state.st_size, f"{state.st_size}:{state.st_mtime_ns}")
        files = {file: state for file, state in found.items() if file_kind(file) is not None}
        if not files:
            kinds = ", ".join([*_PARQUET, *_CSV])
            raise SourceError(f"no file matches {path} (tables.{name}.path). Files end in {kinds}.")
        empty = [file for file, (size, _) in files.items() if size == 0]
        if empty:
            raise SourceError(f"{empty[0]} is an empty file (0 bytes). Export it again, or remove it.")
        if len({file_kind(file) for file in files}) != 1:
            raise SourceError(f"{path} matches both Parquet and CSV files. Point tables.{name}.path at one kind.")
        return {file: stamp for file, (_, stamp) in files.items()}

    def _dialects_of(self, con: duckdb.DuckDBPyConnection, files: dict[str, str], table: Table) -> dict[str, str]:
        """How files are written, found out once: whoever asks DuckDB anew with every query pays a scan for it."""
        if table.delimiter == WHITESPACE:
            return {}
        found = {}
        for file, stamp in files.items():
            key = (file, stamp, table.delimiter, table.header, table.encoding)
            if key not in self._dialects:
                self._dialects[key] = dialect_of(con, file, table).text
            found[file] = self._dialects[key]
        return found


def _described(con: duckdb.DuckDBPyConnection, view: str) -> dict[str, str]:
    """Name to type of a view's columns."""
    return {name: kind for name, kind, *_ in con.execute(f"DESCRIBE {identifier(view)}").fetchall()}


def _objects(con: duckdb.DuckDBPyConnection, path: str, name: str) -> dict[str, tuple[int, str]]:
    """The objects in S3 that match, with their sizes and states; DuckDB reads them through the same client."""
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
    found = {}
    for file, details in sorted(listed.items()):
        size = int(details["size"])
        found[f"s3://{file}"] = (size, f"{size}:{details.get('ETag')}:{details.get('LastModified')}")
    return found


def file_kind(file: str) -> str | None:
    """Whether a file is `parquet` or `csv`, by its name; None where it is neither."""
    lower = file.lower()
    return "parquet" if lower.endswith(_PARQUET) else "csv" if lower.endswith(_CSV) else None


def dialect_of(con: duckdb.DuckDBPyConnection, file: str, table: Table) -> delimited.Dialect:
    """How a file is written: see `delimited.parquet` and `delimited.dialect`."""
    return delimited.parquet(con, file) if file_kind(file) == "parquet" else delimited.dialect(con, file, table)


def rows_of(con: duckdb.DuckDBPyConnection, files: list[str], dialects: dict[str, str], table: Table) -> str:
    """SQL for the rows of files, all of one kind; `_source` is the file's whole path."""
    listed = "[" + ", ".join(map(literal, files)) + "]"
    if file_kind(files[0]) == "parquet":
        return f"read_parquet({listed}, filename = '{ORIGIN}', union_by_name = true, hive_partitioning = false)"
    if table.delimiter == WHITESPACE:
        return _columns_apart(con, listed, table)
    return delimited.reader({file: dialects[file] for file in files}, table)


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
    delimited.require_names(files, header, table)
    names = header if table.header else [f"column{place}" for place in range(len(header))]
    fields = ", ".join(
        f"CASE WHEN len(parts) <= {len(names)} THEN parts[{place}] END AS {identifier(name)}"
        for place, name in enumerate(names, 1)
    )
    titles = "[" + ", ".join(map(literal, header)) + "]"
    where = f" WHERE parts <> {titles}" if table.header else ""
    return f"(SELECT {fields}, {ORIGIN} FROM ({split}){where})"


_TOLD = r"Expected Number of Columns: \d+ Found: \d+|Value with unterminated quote|Invalid unicode|Maximum line size"


def unreadable(path: str, table: str, error: duckdb.Error) -> SourceError:
    """What DuckDB says without the offending line itself, which may hold personal data."""
    text = str(error)
    line = re.search(r"[Ll]ine:? (\d+)", text)
    file = re.search(r"^\s*file = (.+)$", text, re.MULTILINE)
    what = re.search(_TOLD, text)
    said = what[0] if what else text.splitlines()[0]
    where = f" (line {line.group(1)})" if line else ""
    hint = f" Check the file there; tables.{table}.delimiter and encoding say how it is written."
    if "utf-8" in text.lower() or "unicode" in text.lower() or "encoded" in text.lower():
        hint = f" Set tables.{table}.encoding to the file's encoding: latin-1, utf-16."
    elif file_kind(path) == "parquet" or "gzip" in text.lower():
        hint = f" The file is damaged or was only half written: export it again (tables.{table}.path)."
    elif what:
        hint = (
            f" The file is damaged or was only half written, or a field with a delimiter or a quote is not quoted: "
            f"export it again (tables.{table}.path)."
        )
    return SourceError(f"{file[1] if file else path} cannot be read{where}: {said}.{hint}".replace("..", "."))

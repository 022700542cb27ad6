"""The ways in which good data goes bad: small named functions on good files, and what each of them must meet.

`python -m churn_platform_tests.corruptions` writes docs/corruptions.md, the tables of what each met.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import tempfile
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_platform.contract import Contract
from churn_platform.contract_file import parse
from churn_platform.ml import ingestion, validation
from churn_platform.ml.rules import REASON
from churn_platform.sources.base import SourceError
from churn_platform.sources.files import FilesSource
from churn_platform_tests.worlds import all_windows, engine

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENT = Path(__file__).parents[1] / "docs" / "corruptions.md"
SECRET = "zq.private-person@example.com"  # the personal value that no message and no table may hold

_COLUMNS = """\
      email: {type: string, nullable: true, pii: hash, pattern: '[^@]+@[^@]+'}
      loyal: {type: boolean}
      note: {type: string, nullable: true}
      remark: {type: string, nullable: true}
"""
_LIMITS = "min_rows: 8\n    max_quarantined: 0.3"

TRANSACTIONS = f"""\
contract: 1
name: corner_shop
owner: team:shop
source: {{kind: files, complete_until: 2024-03-01}}
customer: {{name: client, type: string}}
time: {{start: 2024-01-01, end: 2024-03-01, cadence: monthly, timezone: UTC}}
tables:
  transactions:
    path: exports/*.csv
    customer: client_no
    time: bought_at
    amount: paid
    order: receipt
    {_LIMITS}
    columns:
      client_no: {{type: string, pattern: '[0-9]{{5}}'}}
      receipt: {{type: string}}
      bought_at: {{type: timestamp}}
      paid: {{type: float, min: 0}}
      shop: {{type: string, nullable: true, allowed: [north, south, Köln]}}
{_COLUMNS}features: {{definitions: {{spent_30d: {{kind: sum, window_days: 30}}}}}}
label: {{active_within_days: 30, horizon_days: 28, warmup_days: 10}}
"""

SNAPSHOTS = f"""\
contract: 1
name: gym_members
owner: team:gym
source: {{kind: files, complete_until: 2024-03-01}}
customer: {{name: member, type: string}}
time: {{start: 2024-01-01, end: 2024-03-01, cadence: monthly, timezone: UTC}}
tables:
  snapshots:
    path: exports/*.csv
    customer: member_id
    time: as_of
    {_LIMITS}
    label: {{column: left, positive: "Yes", negative: "No"}}
    columns:
      member_id: {{type: string}}
      as_of: {{type: timestamp}}
      visits: {{type: integer, min: 0, max: 1000}}
      plan: {{type: string, nullable: true, allowed: [north, south, Köln]}}
      left: {{type: string}}
{_COLUMNS}"""


@dataclass(frozen=True)
class Shape:
    """A contract, and the columns that play its parts."""

    text: str
    table: str
    key: str  # names the customer; only that of the transactions has a pattern
    time: str
    number: str
    word: str  # of few allowed values, one of which is Köln

    def contract(self, kind: str) -> Contract:
        return parse(self.text.replace("*.csv", {"csv": "*.csv", "gz": "*.csv.gz", "parquet": "*.parquet"}[kind]))


SHAPES = {
    "transactions": Shape(TRANSACTIONS, "transactions", "client_no", "bought_at", "paid", "shop"),
    "snapshots": Shape(SNAPSHOTS, "snapshots", "member_id", "as_of", "visits", "plan"),
}
ROWS = 32


def good(table: str) -> pd.DataFrame:
    """Good rows, as text: half of them of January, half of February."""
    shape, drawn = SHAPES[table], np.random.default_rng(5)
    half = ROWS // 2
    days = [f"2024-{1 + n // half:02}-{1 + n % half:02} {8 + n % 12:02}:30:00" for n in range(ROWS)]
    frame = pd.DataFrame(
        {
            shape.key: [f"{n % half + 101:05}" for n in range(ROWS)],
            shape.time: days,
            shape.number: [str(n) for n in drawn.integers(1, 99, ROWS)],
            shape.word: drawn.choice(["north", "south", "Köln"], ROWS),
            "email": [SECRET if n % 4 == 0 else f"p{n}@example.com" for n in range(ROWS)],
            "loyal": drawn.choice(["true", "false"], ROWS),
            "note": [f"note {n}" for n in range(ROWS)],
            "remark": [f"said {n}" for n in range(ROWS)],
        }
    )
    if table == "transactions":
        frame[shape.number] += "." + pd.Series(drawn.integers(10, 99, ROWS)).astype(str)
        frame.insert(1, "receipt", [f"R{n:04}" for n in range(ROWS)])
    else:
        frame.insert(4, "left", ["Yes" if n % 3 == 0 else "No" for n in range(ROWS)])
    return frame


@dataclass
class World:
    """A folder with one good file, for a corruption to spoil; rows are numbered as in `good`."""

    folder: Path
    table: str
    kind: str  # csv, gz or parquet
    random: random.Random

    def __post_init__(self) -> None:
        self.shape = SHAPES[self.table]
        self.frame = good(self.table)
        self.exports = self.folder / "exports"
        self.exports.mkdir(parents=True)
        self.path = self.exports / f"data.{'csv.gz' if self.kind == 'gz' else self.kind}"
        self.save()

    def save(self, path: Path | None = None, frame: pd.DataFrame | None = None, **options: Any) -> None:
        """Write the rows (as text in a CSV, with their types in a Parquet file)."""
        path, frame = path or self.path, self.frame if frame is None else frame
        if self.kind == "parquet":
            pq.write_table(self.arrow(frame), path, **options)
            return
        data = frame.to_csv(index=False, lineterminator="\n", **options).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if self.kind == "gz" else data)

    def arrow(self, frame: pd.DataFrame | None = None) -> pa.Table:
        """The rows with their types; a column in which something else stands is text."""
        frame = self.frame if frame is None else frame
        kinds = {
            self.shape.time: pa.timestamp("us"),
            self.shape.number: pa.float64() if self.table == "transactions" else pa.int64(),
            "loyal": pa.bool_(),
        }
        found = pa.Table.from_pandas(frame.astype(object).where(frame.notna(), None), preserve_index=False)
        for place, name in enumerate(found.column_names):
            if name in kinds:
                try:
                    if kinds[name] == pa.int64():
                        found[name].cast(pa.float64())  # refuses 0x10, which Arrow takes for a whole number
                    found = found.set_column(place, name, found[name].cast(kinds[name]))
                except pa.ArrowInvalid:
                    continue
        return found

    def lines(self) -> list[str]:
        """The lines of the CSV: the header, then the rows."""
        return self.path.read_text().splitlines(keepends=True)

    def some(self, most: int = 3) -> list[int]:
        """A few rows."""
        return self.random.sample(range(ROWS), self.random.randint(1, most))

    def put(self, column: str, *texts: str | None, most: int = 3) -> Damage:
        """Texts in place of a few of a column's values."""
        rows = self.some(most)
        for row in rows:
            self.frame.loc[row, column] = self.random.choice(texts)
        self.save()
        return Damage(set(rows))

    def each(self, column: str, change: Callable[[str], str | None], most: int = 3) -> Damage:
        """A change of a few of a column's values."""
        rows = self.some(most)
        self.frame.loc[rows, column] = [change(value) for value in self.frame.loc[rows, column]]
        self.save()
        return Damage(set(rows))

    def all(self, column: str, change: Callable[[str], str | None]) -> Damage:
        """A change of a whole column."""
        self.frame[column] = [change(value) for value in self.frame[column]]
        self.save()
        return Damage(set(range(ROWS)))


@dataclass
class Damage:
    """Which rows a corruption touched, how many it added, and which it took away before anybody could see them."""

    touched: set[int] = field(default_factory=set)
    added: int = 0
    gone: set[int] = field(default_factory=set)
    became: dict[tuple[int, str], str | None] = field(default_factory=dict)  # values that are right to be otherwise


class Outcome(Enum):
    """What a corruption meets."""

    REFUSED = "refused"
    QUARANTINED = "quarantined"
    HARMLESS = "harmless"
    UNSEEN = "not seen"


@dataclass(frozen=True)
class Corruption:
    """One way to spoil a file."""

    name: str
    words: str
    spoil: Callable[[World], Damage]
    outcome: Outcome
    says: str  # a regular expression for the message or, of quarantined rows, for every reason; if not seen, what helps
    tables: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def cases(self) -> list[tuple[str, str]]:
        return [(table, kind) for table in self.tables for kind in self.kinds]


CORRUPTIONS: list[Corruption] = []
_BOTH = ("transactions", "snapshots")


def _meets(
    outcome: Outcome,
    says: str = "",
    *,
    of: str | tuple[str, ...] = ("csv", "parquet"),
    on: str | tuple[str, ...] = _BOTH,
) -> Callable[[Callable[[World], Damage]], Callable[[World], Damage]]:
    def registered(spoil: Callable[[World], Damage]) -> Callable[[World], Damage]:
        words = " ".join((spoil.__doc__ or "").split()).rstrip(".")
        kinds, tables = (of,) if isinstance(of, str) else of, (on,) if isinstance(on, str) else on
        CORRUPTIONS.append(Corruption(spoil.__name__, words, spoil, outcome, says, tables, kinds))
        return spoil

    return registered


REFUSED, QUARANTINED, HARMLESS, UNSEEN = Outcome


# ------------------------------------------------------------------------------------------------- whole files


@_meets(REFUSED, r"empty file \(0 bytes\).*Export it again", of=("csv", "gz", "parquet"))
def zero_bytes(world: World) -> Damage:
    """A file of zero bytes."""
    world.path.write_bytes(b"")
    return Damage()


@_meets(REFUSED, r"holds no rows.*Check that the export finished", of=("csv", "gz", "parquet"))
def no_rows(world: World) -> Damage:
    """A header, or a schema, and no rows."""
    world.save(frame=world.frame[:0])
    return Damage()


@_meets(REFUSED, r"damaged or was only half written", of="parquet")
def parquet_cut(world: World) -> Damage:
    """A Parquet file that was cut somewhere."""
    data = world.path.read_bytes()
    world.path.write_bytes(data[: world.random.randint(1, len(data) - 1)])
    return Damage()


@_meets(REFUSED, r"damaged or was only half written", of="parquet")
def parquet_without_magic(world: World) -> Damage:
    """A Parquet file whose last four bytes are damaged, which say that it is one."""
    data = bytearray(world.path.read_bytes())
    data[-world.random.randint(1, 4)] ^= 0xFF
    world.path.write_bytes(bytes(data))
    return Damage()


@_meets(REFUSED, r"damaged or was only half written", of="parquet")
def parquet_page_overwritten(world: World) -> Damage:
    """A Parquet file with a page overwritten by zeros."""
    offset = pq.ParquetFile(world.path).metadata.row_group(0).column(0).dictionary_page_offset or 4
    data = bytearray(world.path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    world.path.write_bytes(bytes(data))
    return Damage()


@_meets(REFUSED, r"cannot be read.*(damaged|whole)", of="gz")
def gzip_cut(world: World) -> Damage:
    """A gzipped CSV that was cut somewhere."""
    data = world.path.read_bytes()
    world.path.write_bytes(data[: world.random.randint(1, len(data) - 1)])
    return Damage()


@_meets(REFUSED, r"cannot be read", of="gz")
def gzip_bit_flipped(world: World) -> Damage:
    """A gzipped CSV of which one bit is wrong."""
    data = bytearray(world.path.read_bytes())
    data[world.random.randint(10, len(data) - 9)] ^= 1 << world.random.randint(0, 7)
    world.path.write_bytes(bytes(data))
    return Damage()


@_meets(REFUSED, r"no file matches.*tables")
def folder_in_place_of_the_file(world: World) -> Damage:
    """A folder with the file's name."""
    world.path.unlink()
    world.path.mkdir()
    return Damage()


@_meets(REFUSED, r"no file matches|loop|cannot be read")
def symbolic_link_to_itself(world: World) -> Damage:
    """A symbolic link that leads to itself."""
    world.path.unlink()
    world.path.symlink_to(world.path.name)
    return Damage()


@_meets(REFUSED, r"no file matches|cannot be read")
def symbolic_link_to_nothing(world: World) -> Damage:
    """A symbolic link to a file that is gone."""
    world.path.unlink()
    world.path.symlink_to("gone")
    return Damage()


@_meets(REFUSED, r"cannot be read")
def unreadable_file(world: World) -> Damage:
    """A file that the platform has no permission to read."""
    world.path.chmod(0)
    if os.access(world.path, os.R_OK):
        pytest.skip("whoever runs this may read any file")
    return Damage()


@_meets(REFUSED, r"no file matches")
def no_file(world: World) -> Damage:
    """No file at all."""
    world.path.unlink()
    return Damage()


@_meets(HARMLESS)
def half_written_file_beside(world: World) -> Damage:
    """A half-written file beside the whole one, under a name that ends in .tmp."""
    data = world.path.read_bytes()
    world.path.with_name(world.path.name + ".tmp").write_bytes(data[: world.random.randint(0, len(data))])
    return Damage()


@_meets(REFUSED, r"hold the same 16 rows.*Remove one of the files", on="transactions")
def file_twice(world: World) -> Damage:
    """The same file twice, under two names."""
    shutil.copy(world.path, world.path.with_name("copy of " + world.path.name))
    return Damage(added=ROWS)


@_meets(REFUSED, r"duplicate of another row", on="snapshots")
def snapshots_twice(world: World) -> Damage:
    """The same file of snapshots twice, under two names."""
    shutil.copy(world.path, world.path.with_name("copy of " + world.path.name))
    return Damage(added=ROWS)


@_meets(REFUSED, r"hold the same 16 rows.*Remove one of the files", on="transactions")
def file_exported_again(world: World) -> Damage:
    """The same rows exported once more, in another order."""
    order = world.random.sample(range(ROWS), ROWS)
    world.save(world.path.with_name("again " + world.path.name), world.frame.iloc[order])
    return Damage(added=ROWS)


@_meets(REFUSED, r"hold the same 16 rows.*Remove one of the files", on="transactions")
def file_with_all_so_far(world: World) -> Damage:
    """Each month's export holds all months so far."""
    world.save(world.path.with_name("january " + world.path.name), world.frame[: ROWS // 2])
    return Damage(added=ROWS // 2)


@_meets(REFUSED, r"every row of .* stands there more than once.*Export it again", on="transactions")
def every_row_twice(world: World) -> Damage:
    """Every purchase twice in one file."""
    world.save(frame=pd.concat([world.frame, world.frame]))
    return Damage(added=ROWS)


@_meets(REFUSED, r"duplicate of another row", on="snapshots")
def every_snapshot_twice(world: World) -> Damage:
    """Every snapshot twice in one file."""
    world.save(frame=pd.concat([world.frame, world.frame]))
    return Damage(added=ROWS)


@_meets(REFUSED, r"good rows, at least 8 are needed.*export of this window is whole", of=("csv", "gz", "parquet"))
def rows_missing(world: World) -> Damage:
    """Half a file: it was cut between two lines."""
    kept = world.random.randint(ROWS // 2, ROWS // 2 + 7)
    world.save(frame=world.frame[:kept])
    return Damage(gone=set(range(kept, ROWS)))


# ---------------------------------------------------------------------------------------------- text and lines


@_meets(REFUSED, r"encoding", of="csv")
def latin_1_in_utf_8(world: World) -> Damage:
    """Text in latin-1 where the contract says UTF-8."""
    world.path.write_bytes(world.path.read_text().encode("latin-1"))
    return Damage()


@_meets(REFUSED, r"encoding", of="csv")
def one_byte_that_is_not_utf_8(world: World) -> Damage:
    """One byte that UTF-8 does not know."""
    world.each("note", lambda value: value + "!", most=1)
    world.path.write_bytes(world.path.read_bytes().replace(b"!", world.random.choice([b"\xff", b"\xe4", b"\x80"])))
    return Damage()


@_meets(REFUSED, r"encoding", of="csv")
def utf_16(world: World) -> Damage:
    """Text in UTF-16 where the contract says UTF-8."""
    world.path.write_bytes(world.path.read_text().encode(world.random.choice(["utf-16", "utf-16-le", "utf-16-be"])))
    return Damage()


@_meets(HARMLESS, of="csv")
def byte_order_mark(world: World) -> Damage:
    """A byte order mark before the header."""
    world.path.write_bytes(b"\xef\xbb\xbf" + world.path.read_bytes())
    return Damage()


@_meets(QUARANTINED, r"holds a character that nobody sees")
def nul_in_a_key(world: World) -> Damage:
    """A NUL byte in the customer's id."""
    return world.each(world.shape.key, lambda value: value[:2] + "\0" + value[2:])


@_meets(REFUSED, r"cannot be read|parted", of="csv")
def last_line_cut(world: World) -> Damage:
    """A CSV that was cut in the middle of its last line."""
    text = world.path.read_text()
    last = text.rstrip("\n").rfind("\n") + 1
    commas = [match.start() for match in re.finditer(",", text[last:])]
    world.path.write_text(text[: last + world.random.choice(commas)])
    return Damage()


@_meets(UNSEEN, "rename a file when it is whole; a pattern for the last column", of="csv")
def last_field_cut(world: World) -> Damage:
    """A CSV that was cut in its last line's last field, a text that no rule describes."""
    text = world.path.read_text().rstrip("\n")
    cut = world.random.randint(1, len("said 31") - 1)
    world.path.write_text(text[:-cut])
    return Damage({ROWS - 1})


@_meets(REFUSED, r"cannot be read", of="csv")
def cut_inside_quotes(world: World) -> Damage:
    """A CSV that was cut inside a quoted field."""
    row = world.random.randrange(1, ROWS)
    world.frame.loc[:, "remark"] = ["said, and said again"] * ROWS
    world.save()
    lines = world.lines()
    world.path.write_text("".join(lines[: row + 1]) + lines[row + 1][:-4])
    return Damage()


@_meets(REFUSED, r"cannot be read", of="csv")
def quote_never_closed(world: World) -> Damage:
    """A field that begins with a quote which nothing closes."""
    lines = world.lines()
    row = world.random.randrange(1, ROWS + 1)
    lines[row] = lines[row].replace("note ", '"note ')
    world.path.write_text("".join(lines))
    return Damage()


@_meets(REFUSED, r"cannot be read", of="csv")
def field_too_many(world: World) -> Damage:
    """A delimiter inside a field that is not quoted."""
    lines = world.lines()
    for row in world.some():
        lines[row + 1] = lines[row + 1].replace("note ", "note,")
    world.path.write_text("".join(lines))
    return Damage()


@_meets(REFUSED, r"cannot be read", of="csv")
def field_too_few(world: World) -> Damage:
    """A line in the middle with a field too few."""
    lines = world.lines()
    for row in world.some():
        lines[row + 1] = lines[row + 1].rsplit(",", 1)[0] + "\n"
    world.path.write_text("".join(lines))
    return Damage()


@_meets(HARMLESS, of="csv")
def quotes_and_delimiters_inside_fields(world: World) -> Damage:
    """Delimiters, quotes and line ends inside quoted fields."""
    first = world.random.randrange(ROWS - 1)
    rows = [first, first + 1]
    text = world.random.choice(['a, "b", c', "two\nlines", '""', ";;;", '"', "'"])
    world.frame.loc[rows, "note"] = text
    world.save()
    return Damage(became={(row, "note"): text for row in rows})


@_meets(HARMLESS, of="csv")
def everything_quoted(world: World) -> Damage:
    """Every field in quotes."""
    world.save(quoting=1)
    return Damage()


@_meets(HARMLESS, of="csv")
def other_line_ends(world: World) -> Damage:
    """Lines that end as on Windows, or as on an old Macintosh."""
    end = world.random.choice([b"\r\n", b"\r"])
    world.path.write_bytes(world.path.read_bytes().replace(b"\n", end))
    return Damage()


@_meets(HARMLESS, of="csv")
def empty_lines(world: World) -> Damage:
    """Empty lines between the others."""
    lines = world.lines()
    for row in world.some():
        lines[row + 1] += "\n"
    world.path.write_text("".join(lines) + "\n\n")
    return Damage()


@_meets(HARMLESS, of="csv")
def another_delimiter(world: World) -> Damage:
    """Another delimiter in the whole file."""
    mark = world.random.choice([";", "\t", "|"])
    world.path.write_text(world.path.read_text().replace(",", mark))
    return Damage()


@_meets(REFUSED, r"delimiter|does not fit|cannot be read", of="csv")
def another_delimiter_in_some_lines(world: World) -> Damage:
    """Another delimiter in some lines."""
    lines = world.lines()
    for row in world.some():
        lines[row + 1] = lines[row + 1].replace(",", ";")
    world.path.write_text("".join(lines))
    return Damage()


@_meets(QUARANTINED, r"the header|is not a date and time", of="csv")
def header_once_more(world: World) -> Damage:
    """The header line once more, among the rows."""
    lines = world.lines()
    lines.insert(world.random.randint(1, ROWS + 1), lines[0])
    world.path.write_text("".join(lines))
    return Damage(added=1)


@_meets(REFUSED, r"no column that the contract names stands in its first line", of="csv")
def title_before_the_header(world: World) -> Damage:
    """A title above the header."""
    world.path.write_text("Report of the shop\n" + world.path.read_text())
    return Damage()


@_meets(REFUSED, r"cannot be read", of="csv")
def total_below_the_rows(world: World) -> Damage:
    """A line with the total below the rows."""
    world.path.write_text(world.path.read_text() + "Total,32\n")
    return Damage()


@_meets(HARMLESS, of="csv")
def very_long_field(world: World) -> Damage:
    """A text of a megabyte."""
    (row,) = world.some(1)
    world.frame.loc[row, "note"] = "x" * 1_000_000
    world.save()
    return Damage(became={(row, "note"): "x" * 1_000_000})


@_meets(REFUSED, r"cannot be read", of="csv")
def line_without_end(world: World) -> Damage:
    """A line of two megabytes."""
    (row,) = world.some(1)
    world.frame.loc[row, "note"] = "x" * 2_100_000
    world.save()
    return Damage()


# ------------------------------------------------------------------------------------------------------ columns


@_meets(REFUSED, r"has no '\w+'.*It has the columns")
def column_missing(world: World) -> Damage:
    """A column that is not there."""
    world.save(frame=world.frame.drop(columns=world.random.choice(list(world.frame))))
    return Damage()


@_meets(REFUSED, r"has no '\w+'.*Did you mean")
def column_renamed(world: World) -> Damage:
    """A column under another name."""
    name = world.random.choice(list(world.frame))
    world.save(frame=world.frame.rename(columns={name: name + "_new"}))
    return Damage()


@_meets(REFUSED, r"two columns|twice")
def column_name_twice(world: World) -> Damage:
    """Two columns of the same name."""
    name = world.random.choice(list(world.frame))
    extra = pd.Series(["7"] * ROWS, name=name)
    frame = pd.concat([world.frame, extra], axis=1)
    if world.kind == "csv":
        world.save(frame=frame)
    else:
        table = world.arrow()
        pq.write_table(table.append_column(name, table[name]), world.path)
    return Damage()


@_meets(HARMLESS)
def column_too_many(world: World) -> Damage:
    """A column that the contract does not name."""
    frame = world.frame.copy()
    frame.insert(world.random.randint(0, len(frame.columns)), "something_else", "what")
    world.save(frame=frame)
    return Damage()


@_meets(HARMLESS)
def columns_in_another_order(world: World) -> Damage:
    """The columns in another order."""
    world.save(frame=world.frame[world.random.sample(list(world.frame), len(world.frame.columns))])
    return Damage()


@_meets(HARMLESS)
def column_names_in_other_case(world: World) -> Damage:
    """Column names in capitals."""
    world.save(frame=world.frame.rename(columns=str.upper))
    return Damage()


@_meets(REFUSED, r"100\.00%\) are bad.* x ")
def columns_swapped(world: World) -> Damage:
    """Two columns whose names are swapped, of which one has a rule or another type."""
    names = ["remark", world.random.choice([world.shape.time, world.shape.number, world.shape.word, "email", "loyal"])]
    world.save(frame=world.frame.rename(columns=dict(zip(names, reversed(names), strict=True))))
    return Damage(set(range(ROWS)))


@_meets(UNSEEN, "a pattern, or allowed values")
def texts_swapped(world: World) -> Damage:
    """Two columns of free text whose names are swapped."""
    world.save(frame=world.frame.rename(columns={"note": "remark", "remark": "note"}))
    return Damage(set(range(ROWS)))


@_meets(REFUSED, r"lacks the column|has no column")
def files_of_two_schemas(world: World) -> Damage:
    """Two files, of which one lacks a column."""
    name = world.random.choice(list(world.frame))
    half = ROWS // 2
    world.save(frame=world.frame[:half])
    world.save(world.path.with_name("february." + world.kind), world.frame[half:].drop(columns=name))
    return Damage()


@_meets(REFUSED, r"damaged or was only half written", of="parquet")
def parquet_that_is_a_csv(world: World) -> Damage:
    """A CSV under the name of a Parquet file."""
    world.path.write_text(world.frame.to_csv(index=False))
    return Damage()


@_meets(REFUSED, r"cannot be read|does not fit", of="csv")
def csv_that_is_a_parquet(world: World) -> Damage:
    """A Parquet file under the name of a CSV."""
    pq.write_table(world.arrow(), world.path)
    return Damage()


# ------------------------------------------------------------------------------------------------------- values


@_meets(QUARANTINED, r"is not a (finite|whole) number")
def number_in_words(world: World) -> Damage:
    """Words among the numbers."""
    return world.put(world.shape.number, "ten", "n/a", "-", "unknown", "#REF!", "None", "true", "0x10", "1_000")


@_meets(QUARANTINED, r"is not a (finite|whole) number")
def decimal_comma(world: World) -> Damage:
    """Decimal commas where the contract says points."""
    return world.put(world.shape.number, "2,50", "0,5", "12,0", "1.234,56")


@_meets(QUARANTINED, r"is not a (finite|whole) number")
def thousands_separators(world: World) -> Damage:
    """Numbers with marks between thousands."""
    return world.put(world.shape.number, "1,234", "1 234", "1'234", "1\u00a0234", "1\u202f234", "1,234.50")


@_meets(QUARANTINED, r"is not a (finite|whole) number")
def currency_and_units(world: World) -> Damage:
    """Numbers with a currency, a unit or brackets."""
    return world.put(world.shape.number, "$5", "5 €", "5 EUR", "5%", "(5)", "5-", "5kg", "=5")


@_meets(QUARANTINED, r"is not a (finite|whole) number")
def not_a_number(world: World) -> Damage:
    """NaN and infinities."""
    return world.put(world.shape.number, "NaN", "nan", "Inf", "-Inf", "inf", "-Infinity", "Infinity", "1e400", "-1e400")


@_meets(QUARANTINED, r"is not a finite number", of="parquet", on="transactions")
def not_a_number_in_parquet(world: World) -> Damage:
    """NaN and infinities as a Parquet file holds them."""
    rows = world.some()
    values = world.frame["paid"].astype(float)
    for row in rows:
        values[row] = world.random.choice([np.nan, np.inf, -np.inf])
    table = world.arrow()
    pq.write_table(table.set_column(3, "paid", pa.array(values.to_numpy(), from_pandas=False)), world.path)
    return Damage(set(rows))


@_meets(QUARANTINED, r"is not a (finite|whole) number")
def digits_of_other_scripts(world: World) -> Damage:
    """Digits of other scripts."""
    return world.put(world.shape.number, "\u0663\u0664", "\uff13", "\u0967", "\u00b2")


@_meets(QUARANTINED, r"is below 0")
def negative_numbers(world: World) -> Damage:
    """Negative numbers where the contract says 0 or more."""
    return world.put(world.shape.number, "-1", "-5", "-99999")


@_meets(QUARANTINED, r"too large to be summed|above 1000|is not a whole number")
def huge_numbers(world: World) -> Damage:
    """Numbers too large to be true."""
    return world.put(world.shape.number, "1000000000000", "99999999999999999999999", "1e300", "9223372036854775808")


@_meets(QUARANTINED, r"is not a whole number", on="snapshots")
def fractions_of_a_whole_number(world: World) -> Damage:
    """Fractions in a column of whole numbers."""
    return world.put("visits", "1.5", "0.999999999999999999", "1.0000000000000001", "3/2")


@_meets(QUARANTINED, r"lies outside the history")
def dates_far_away(world: World) -> Damage:
    """Dates in 1900, 1970, 2100 or 9999."""
    return world.put(
        world.shape.time, "1900-01-01 00:00:00", "1970-01-01", "2100-01-01 10:00:00", "9999-12-31", "0001-01-01"
    )


@_meets(QUARANTINED, r"is not a date and time")
def dates_that_never_were(world: World) -> Damage:
    """30 February, month 13, 25 o'clock."""
    return world.put(
        world.shape.time, "2024-02-30", "2024-13-01", "2024-01-05 25:00:00", "2023-02-29", "0000-00-00", "2024-01-00"
    )


@_meets(QUARANTINED, r"is not a date and time")
def dates_in_words(world: World) -> Damage:
    """Words and other notations among the dates."""
    return world.put(
        world.shape.time, "yesterday", "05.01.2024", "1/5/2024", "Jan 5 2024", "now", "today", "Q1", "45296"
    )


@_meets(QUARANTINED, r"is not a date and time")
def unix_epochs(world: World) -> Damage:
    """Seconds or milliseconds since 1970 among the dates."""
    return world.put(world.shape.time, "1704448800", "1704448800000", "1704448800.5", "20240105")


@_meets(REFUSED, r"is not a date and time", of="parquet")
def unix_epochs_throughout(world: World) -> Damage:
    """Seconds since 1970 in place of all dates."""
    table = world.arrow()
    place = table.column_names.index(world.shape.time)
    seconds = pa.array([1704448800 + n for n in range(ROWS)])
    pq.write_table(table.set_column(place, world.shape.time, seconds), world.path)
    return Damage(set(range(ROWS)))


@_meets(QUARANTINED, r"is not a date and time|lies outside the history")
def day_and_month_swapped(world: World) -> Damage:
    """Day and month swapped, where that makes no day of the history."""
    rows = world.random.sample([row for row in range(ROWS) if row % (ROWS // 2) >= 2], 3)
    for row in rows:
        year, month, rest = world.frame.loc[row, world.shape.time].split("-")
        world.frame.loc[row, world.shape.time] = f"{year}-{rest[:2]}-{month}{rest[2:]}"
    world.save()
    return Damage(set(rows))


@_meets(UNSEEN, "the comparison of a window's number of rows with those before")
def day_and_month_swapped_unseen(world: World) -> Damage:
    """Day and month swapped, where that makes another day of the history."""
    world.frame.loc[1, world.shape.time] = "2024-02-01 09:31:00"
    world.save()
    return Damage({1})


@_meets(HARMLESS, of="csv")
def zone_offsets(world: World) -> Damage:
    """The same instants, written with another zone's offset."""
    rows = world.some()
    for row in rows:
        hours = world.random.randint(-11, 14)
        there = pd.Timestamp(world.frame.loc[row, world.shape.time], tz="UTC") + pd.Timedelta(hours=hours)
        world.frame.loc[row, world.shape.time] = f"{there:%Y-%m-%dT%H:%M:%S}{hours:+03}:00"
    world.save()
    return Damage()


@_meets(HARMLESS, of="csv")
def blanks_around_values(world: World) -> Damage:
    """Spaces, tabs and no-break spaces around values."""
    name = world.random.choice(list(world.frame))
    pad = world.random.choice([" ", "\t", "\u00a0", "  \t", "\u200b", "\ufeff", "\u2003"])
    world.all(name, lambda value: pad + value + pad)
    return Damage()


@_meets(QUARANTINED, r"is missing")
def nulls_in_keys(world: World) -> Damage:
    """Nothing in the customer's id or in the time."""
    return world.put(world.random.choice([world.shape.key, world.shape.time]), None, "", "  ")


@_meets(REFUSED, r"100\.00%\) are bad.* is missing")
def column_of_nulls(world: World) -> Damage:
    """A column of nothing but gaps, where the contract allows none."""
    return world.all(world.random.choice([world.shape.key, world.shape.number, "loyal"]), lambda _: None)


@_meets(UNSEEN, "leave out nullable: true; the share of known values on the asset; drift")
def nullable_column_of_nulls(world: World) -> Damage:
    """A column of nothing but gaps, where the contract allows gaps."""
    return world.all("note", lambda _: None)


@_meets(REFUSED, r"100\.00%\) are bad.* is not (a |true or false)")
def column_of_a_wrong_type(world: World) -> Damage:
    """A column of which every value has the wrong type."""
    return world.all(world.random.choice([world.shape.time, world.shape.number, "loyal"]), lambda value: f"<{value}>")


@_meets(QUARANTINED, r"is not true or false")
def truth_in_other_words(world: World) -> Damage:
    """Words for true and false that nobody agreed on."""
    return world.put("loyal", "maybe", "ja", "2", "-1", "on", "wahr", "null")


@_meets(HARMLESS)
def truth_in_known_words(world: World) -> Damage:
    """Yes and no, t and f, 1 and 0 for true and false."""
    yes, no = world.random.choice(
        [("Yes", "No"), ("T", "F"), ("1", "0"), ("TRUE", "FALSE"), ("y", "n"), ("1.0", "0.0")]
    )
    world.all("loyal", lambda value: yes if value == "true" else no)
    return Damage()


@_meets(QUARANTINED, r"is not one of the allowed values")
def unknown_words(world: World) -> Damage:
    """Words that the contract does not list."""
    return world.put(world.shape.word, "east", "North", "north;", "n\u043erth", "south\u200b?", "Koln")


@_meets(QUARANTINED, r"a value.* does not match|email does not match its pattern")
def personal_values_that_break_a_rule(world: World) -> Damage:
    """Personal values that break their rule; the reason may not quote them."""
    return world.put("email", SECRET.replace("@", " at "), SECRET.replace("@", "@@"))


@_meets(QUARANTINED, r"left is neither label", on="snapshots")
def unknown_labels(world: World) -> Damage:
    """Labels of a third kind."""
    return world.put("left", "Maybe", "yes", "Y", "1", "churned")


@_meets(REFUSED, r"labelled rows have left = 'Yes'.*Write tables.snapshots.label.positive", on="snapshots")
def labels_of_one_kind(world: World) -> Damage:
    """Labels of one kind only."""
    world.all("left", lambda _: "No")
    return Damage()


# --------------------------------------------------------------------------------------------------- ids and text


@_meets(QUARANTINED, r"client_no does not match its pattern", on="transactions")
def ids_as_numbers(world: World) -> Damage:
    """Ids that went through a spreadsheet, where a pattern says what an id looks like."""
    return world.each(
        "client_no", lambda v: world.random.choice([str(int(v)), f"{int(v)}.0", f"{int(v):.2E}", f"'{v}"])
    )


@_meets(UNSEEN, "a pattern", on="snapshots")
def ids_without_leading_zeros(world: World) -> Damage:
    """Ids that lost their leading zeros, where no pattern says what an id looks like."""
    return world.all("member_id", lambda value: str(int(value)))


@_meets(REFUSED, r"client_no does not match its pattern", of="parquet", on="transactions")
def ids_as_floats(world: World) -> Damage:
    """All ids as decimals: the column had a gap when pandas read it."""
    table = world.arrow()
    ids = pa.array([float(value) for value in world.frame["client_no"]])
    pq.write_table(table.set_column(0, "client_no", ids), world.path)
    return Damage(set(range(ROWS)))


@_meets(QUARANTINED, r"holds a character that nobody sees")
def ids_with_invisible_characters(world: World) -> Damage:
    """Ids with a character inside that nobody sees."""
    marks = ["\u200b", "\u200d", "\u2060", "\u00ad", "\u202e", "\u200f", "\ufeff", "\x01", "\x7f", "\x1b"]
    return world.each(
        world.shape.key if world.table == "snapshots" else "receipt",
        lambda value: value[:2] + world.random.choice(marks) + value[2:],
    )


@_meets(HARMLESS)
def other_normal_form(world: World) -> Damage:
    """Text in another of Unicode's normal forms: Köln with a letter o and two dots to put above it."""
    world.all(world.shape.word, lambda value: unicodedata.normalize("NFD", value))
    return Damage()


@_meets(HARMLESS)
def unicode_text(world: World) -> Damage:
    """Emoji, text from right to left, letters beyond the first plane."""
    rows = world.some()
    text = world.random.choice(["🦊", "👩‍👩‍👧", "שלום", "مرحبا", "\U0001d518", "日本", "é", "ﬁ"])
    world.frame.loc[rows, "note"] = text
    world.save()
    return Damage(became={(row, "note"): text for row in rows})


@_meets(HARMLESS)
def text_that_is_code(world: World) -> Damage:
    """SQL, formulas, markup and paths as text."""
    rows = world.some()
    text = world.random.choice(
        ["'; DROP TABLE _judged; --", "=cmd()|'/C calc'!A0", "<script>alert(1)</script>", "../../etc", "${HOME}",
         "{{7*7}}", "%s%n", "NULL", "\\N", "' OR ''='", "@SUM(1+1)", "; x is missing"]
    )  # fmt: skip
    world.frame.loc[rows, "note"] = text
    world.save()
    return Damage(became={(row, "note"): text for row in rows})


@_meets(HARMLESS)
def control_characters_in_text(world: World) -> Damage:
    """Control characters in free text."""
    rows = world.some()
    text = world.random.choice(["a\x01b", "a\x1b[31mb", "a\tb", "a\x7fb", "a\x0bb"])
    world.frame.loc[rows, "note"] = text
    world.save()
    return Damage(became={(row, "note"): text for row in rows})


# ------------------------------------------------------------------------------------------------- Parquet's types


@_meets(HARMLESS, of="parquet")
def parquet_all_text(world: World) -> Damage:
    """A Parquet file in which all columns are text."""
    pq.write_table(pa.Table.from_pandas(world.frame, preserve_index=False), world.path)
    return Damage()


@_meets(HARMLESS, of="parquet")
def parquet_dictionaries(world: World) -> Damage:
    """A Parquet file whose texts are dictionary-encoded categories."""
    table = world.arrow()
    for place, name in enumerate(table.column_names):
        if pa.types.is_string(table[name].type):
            table = table.set_column(place, name, table[name].dictionary_encode())
    pq.write_table(table, world.path)
    return Damage()


@_meets(HARMLESS, of="parquet")
def parquet_decimals(world: World) -> Damage:
    """A Parquet file whose numbers are decimals."""
    table, name = world.arrow(), world.shape.number
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, table[name].cast(pa.decimal128(30, 4))), world.path)
    return Damage()


@_meets(HARMLESS, of="parquet")
def parquet_times_of_other_units(world: World) -> Damage:
    """A Parquet file whose times are in seconds, milliseconds or nanoseconds, with a zone or without."""
    table, name = world.arrow(), world.shape.time
    unit, zone = world.random.choice(["s", "ms", "ns", "us"]), world.random.choice([None, "UTC", "Asia/Tokyo"])
    times = table[name].cast(pa.timestamp(unit))
    if zone is not None:
        times = times.cast(pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit, zone))
    pq.write_table(table.set_column(table.column_names.index(name), name, times), world.path)
    return Damage()


@_meets(HARMLESS, of="parquet")
def parquet_bytes_for_text(world: World) -> Damage:
    """A Parquet file whose texts are written as bytes, as older writers do."""
    table = world.arrow()
    for place, name in enumerate(table.column_names):
        if pa.types.is_string(table[name].type):
            table = table.set_column(place, name, table[name].cast(pa.binary()))
    pq.write_table(table, world.path)
    return Damage()


@_meets(REFUSED, r"100\.00%\) are bad.* is not text", of="parquet")
def parquet_bytes_that_are_no_text(world: World) -> Damage:
    """A Parquet file with bytes that are no text in place of ids."""
    table, name = world.arrow(), world.shape.key
    values = pa.array([bytes([0xFF, n]) for n in range(ROWS)])
    pq.write_table(table.set_column(table.column_names.index(name), name, values), world.path)
    return Damage(set(range(ROWS)))


@_meets(REFUSED, r"100\.00%\) are bad.* is not ", of="parquet")
def parquet_nested(world: World) -> Damage:
    """A Parquet file with lists or structures in place of plain values."""
    table, name = world.arrow(), world.random.choice([world.shape.key, "note", world.shape.number])
    wrap: Callable[[Any], Any] = world.random.choice([lambda value: [value], lambda value: {"value": value}])
    values = pa.array([wrap(value) for value in world.frame[name]])
    pq.write_table(table.set_column(table.column_names.index(name), name, values), world.path)
    return Damage(set(range(ROWS)))


# --------------------------------------------------------------------------------------------------- what they meet


@dataclass
class Met:
    """What a file met: a refusal in words or none, the reasons of the quarantined rows, and the good ones."""

    refusal: str
    reasons: list[str]
    good: Counter[tuple[Any, ...]]


def read(contract: Contract, folder: Path) -> Met:
    """Take a source's files as far as validation takes them, window by window, as the assets do."""
    name = contract.main_table
    kept = list(contract.tables.items()[name].kept)
    source, found = FilesSource(contract, folder), Met("", [], Counter())
    refused: dict[str, None] = {}
    with engine(contract) as con:
        try:
            source.watermark(con)
            for window in all_windows(contract):
                rows = ingestion.typed_rows(con, contract, name, source.rows(con, name, window), window)
                rows.create_view("_rows", replace=True)
                divided = validation.split(con, contract, name, "_rows")
                findings = validation.findings(con, contract, name, "_rows", divided)
                refused |= {f"validated_{name}: {bad.words}. {bad.remedy}": None for bad in findings if not bad.passed}
                columns = ", ".join(f'"{column}"::VARCHAR' for column in kept)
                good_rows = divided.good.project(columns).fetchall()
                reasons = [reason for (reason,) in divided.quarantined.project(REASON).fetchall()]
                assert divided.rows == len(good_rows) + len(reasons), "a row was lost between raw and validated"
                found.good.update(good_rows)
                found.reasons += reasons
        except SourceError as error:
            refused[str(error)] = None
    found.refusal = "\n".join(refused)
    return found


@cache
def typed_good(table: str) -> list[tuple[Any, ...]]:
    """The good rows as the platform types them, in the order of `good`."""
    with tempfile.TemporaryDirectory() as folder:
        World(Path(folder), table, "csv", random.Random(0))
        contract = SHAPES[table].contract("csv")
        met = read(contract, Path(folder))
    assert met.refusal == ""
    assert met.reasons == []
    place = list(contract.tables.items()[table].kept).index("note")
    return sorted(met.good, key=lambda row: int(row[place].split()[1]))


def verdict(corruption: Corruption, table: str, damage: Damage, met: Met) -> Outcome | str:
    """Which of the outcomes it was, or what is wrong in words."""
    columns = list(SHAPES[table].contract("csv").tables.items()[table].kept)
    expected = Counter[tuple[Any, ...]]()
    for number, values in enumerate(typed_good(table)):
        if number not in damage.touched | damage.gone:
            changed = [damage.became.get((number, name), value) for name, value in zip(columns, values, strict=True)]
            expected[tuple(changed)] += 1
    rows = ROWS + damage.added - len(damage.gone)
    if met.refusal:
        return Outcome.REFUSED
    if met.good.total() + len(met.reasons) != rows:
        return f"of {rows} rows {met.good.total()} are good and {len(met.reasons)} in quarantine: some were lost"
    if met.reasons:
        if len(met.reasons) != len(damage.touched) + damage.added or met.good != expected:
            return f"{len(damage.touched)} rows were touched, in quarantine are others: {met.reasons}"
        return Outcome.QUARANTINED
    if met.good == expected:
        return Outcome.HARMLESS
    return Outcome.UNSEEN


def attempt(corruption: Corruption, table: str, kind: str, chance: random.Random) -> tuple[Outcome | str, Met]:
    """Spoil good data in a folder of its own, read it, and say what came of it; messages name no folder."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "source", table, kind, chance)
        damage = corruption.spoil(world)
        met = read(world.shape.contract(kind), world.folder)
        met.refusal = met.refusal.replace(f"{world.exports}/", "")
        return verdict(corruption, table, damage, met), met


# -------------------------------------------------------------------------------------------------------- the document

_HEADINGS = {
    REFUSED: "Refused: nothing of the window is published, and the message says what to do",
    QUARANTINED: "Quarantined: these rows go aside with their reason, the others are published",
    HARMLESS: "Harmless: the same rows are read as from the good file",
    UNSEEN: "Not seen: it looks like good data, and what helps",
}
_INTRODUCTION = """\
# What bad data meets

The tests spoil good files in {count} ways and look at what becomes of them: each way has one outcome that it must
meet, whatever rows, columns and values are hit. In every case the rows that came in are those that are published and
those in quarantine, to the last one; and what is refused changes nothing downstream. Of a window of which too large a
share is bad (`max_quarantined`) nothing is published either. `make fuzz` tries every way 200 times instead of twice.
This page is written by `python -m churn_platform_tests.corruptions`, from what each really met; a test holds it to
that.

What is decided about text: blanks of all kinds and invisible characters around a value are no part of it. Text is kept
in one of the forms that Unicode holds equal (NFC), so that an id written with a composed or a decomposed letter is one
customer. An id (`customer`, `order`, `unique`) with a character inside that nobody sees is quarantined: nobody can know
whether it is another customer. Case, look-alike letters and leading zeros are left as they are: a `pattern` says what
an id looks like.

About rows that stand there twice: where the contract names a key (`unique`; customers and snapshots have one), copies
go to quarantine. Without one, two purchases may truly be alike. Refused is only what cannot be chance: two files that
hold the same rows of a window, and a window of which every row stands there twice or more. Single copies are not seen
without a key.

About CSV: how a file is written is found out once; then it is read in that way and no other, so that a line that does
not fit is named, and never skipped. Damage that leaves a well-formed file cannot be seen: two stray quotes that make
one field of several lines, a flipped bit in a Parquet value (gzip has a checksum, and it is compared), a line cut in
its last field.
"""


def document() -> str:
    """The page of what each corruption met."""
    lines = [_INTRODUCTION.format(count=len(CORRUPTIONS))]
    for outcome, heading in _HEADINGS.items():
        lines += [f"## {heading}", ""]
        last = {REFUSED: "what it says", QUARANTINED: "reason", HARMLESS: "", UNSEEN: "what helps"}[outcome]
        lines += ["| what is wrong | in | " + (f"{last} |" if last else ""), "|---|---|" + ("---|" if last else "")]
        for corruption in CORRUPTIONS:
            if corruption.outcome is outcome:
                kinds = ", ".join(
                    {"csv": "CSV", "gz": "CSV.gz", "parquet": "Parquet"}[kind] for kind in corruption.kinds
                )
                cells = [corruption.words, kinds, *([_said(corruption)] if last else [])]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(line.rstrip() for line in lines)


def _said(corruption: Corruption) -> str:
    """What a corruption meets, in a line: the message, or the reasons."""
    if corruption.outcome is UNSEEN:
        return corruption.says
    if corruption.name == "unreadable_file":
        return "the file cannot be read"  # whoever writes this page may read any file
    table, kind = corruption.cases[0]
    _, met = attempt(corruption, table, kind, random.Random(3))
    said = met.refusal or "; ".join(sorted(set(met.reasons))[:2])
    matching = [line for line in said.splitlines() if re.search(corruption.says, line) and not line.endswith(":")]
    said = " ".join((matching[0] if matching else said).split()).replace("|", "\\|")
    return said if len(said) < 240 else f"{said[:230].rsplit(' ', 1)[0]} ..."


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")

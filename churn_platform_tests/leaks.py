"""Looking for secrets in every byte that a run wrote, also where they are compressed, encoded or in a table.

A secret that is text is looked for in any case, in UTF-8 and UTF-16, escaped as in URLs and JSON, in hexadecimal and in
base64; one that is a number also as a float of eight bytes. Compressed files, archives, Parquet and Arrow tables,
SQLite databases, PNG texts and embedded base64 are opened, and what is inside is looked through in turn. What cannot be
seen so: the pixels of a picture, what is encrypted, and what has been hashed.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa
import pyarrow.feather
from pyarrow import parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_DEEPEST = 6  # containers in containers
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{64,}={0,2}")
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    pa.ArrowException,
)


@dataclass(frozen=True)
class Leak:
    """A secret, and where it stands."""

    secret: str
    form: str
    place: str

    def __str__(self) -> str:
        return f"{self.secret!r} as {self.form} in {self.place}"


class Scanner:
    """Looks for secrets.

    Args:
        secrets: texts that must not stand anywhere. Make them long and random: a short one is found by chance.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._lower: list[tuple[str, str, bytes]] = []  # looked for without regard to case
        self._exact: list[tuple[str, str, bytes]] = []
        for secret in secrets:
            self._prepare(secret)
        self.seen = 0  # bytes that were looked at, unpacked

    def _prepare(self, secret: str) -> None:
        written = dict.fromkeys((secret, secret.lower(), secret.upper()))
        forms: dict[bytes, str] = {}
        for text in written:
            forms.setdefault(text.encode().lower(), "text")
            forms.setdefault(text.encode("utf-16-le").lower(), "UTF-16")
            forms.setdefault(text.encode("utf-16-be").lower(), "UTF-16 (big-endian)")
            forms.setdefault(quote(text, safe="").lower().encode(), "URL")
            forms.setdefault(json.dumps(text)[1:-1].lower().encode(), "JSON")
            forms.setdefault(text.encode().hex().encode(), "hexadecimal")
        self._lower += [(secret, form, found) for found, form in forms.items()]
        for text in written:
            self._exact += [(secret, "base64", found) for found in _in_base64(text.encode())]
        with contextlib.suppress(ValueError):
            number = float(secret)
            self._exact += [(secret, "a float", struct.pack(order + "d", number)) for order in "<>"]

    def tree(self, *roots: Path, skip: Iterable[Path] = ()) -> list[Leak]:
        """The leaks in all files under some folders, but for what lies under `skip`; file names are looked at, too."""
        skipped = list(skip)
        found: list[Leak] = []
        for root in roots:
            for path in sorted(root.rglob("*")):
                if any(path.is_relative_to(folder) for folder in skipped):
                    continue
                found += self.bytes(str(path.relative_to(root)).encode(), f"the name of {path}")
                if path.is_file() and not path.is_symlink():
                    found += self.file(path)
        return found

    def file(self, path: Path) -> list[Leak]:
        """The leaks in one file."""
        found = self.bytes(path.read_bytes(), str(path))
        with path.open("rb") as file:
            if file.read(16).startswith(b"SQLite format 3"):
                found += self._database(path)
        return list(dict.fromkeys(found))

    def bytes(self, data: bytes, place: str, depth: int = 0) -> list[Leak]:
        """The leaks in some bytes and in all that is packed into them."""
        self.seen += len(data)
        lower = data.lower()
        found = [Leak(secret, form, place) for secret, form, form_bytes in self._lower if form_bytes in lower]
        found += [Leak(secret, form, place) for secret, form, form_bytes in self._exact if form_bytes in data]
        if depth < _DEEPEST:
            with contextlib.suppress(*_BROKEN):
                for name, inside in _unpacked(data):
                    found += self.bytes(inside, f"{place} > {name}", depth + 1)
            for match in _BASE64.finditer(data):
                with contextlib.suppress(binascii.Error):
                    text = match.group().rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
                    inside = base64.b64decode(text[: len(text) - (len(text) % 4 == 1)] + b"===")
                    if _packed(inside):
                        found += self.bytes(inside, f"{place} > base64", depth + 1)
        return list(dict.fromkeys(found))

    def _database(self, path: Path) -> list[Leak]:
        """The leaks in the values of a database: the file holds long ones in pieces."""
        found: list[Leak] = []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as con:
            con.text_factory = bytes
            tables = [name.decode() for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                place = f"{path} > table {table}"
                for row in con.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        if value is not None:
                            data = value if isinstance(value, bytes) else repr(value).encode()
                            found += self.bytes(data, place, 1)
        return found


def _in_base64(data: bytes) -> Iterator[bytes]:
    """How bytes look within base64 of something longer, at each of the three places where they may begin."""
    for before in range(3):
        text = base64.b64encode(b"\0" * before + data)
        first = (8 * before + 5) // 6  # characters that hold bits of what stands before
        last = (8 * (before + len(data))) // 6
        yield text[first:last]
        yield text[first:last].replace(b"+", b"-").replace(b"/", b"_")


def _packed(data: bytes) -> bool:
    """Whether bytes begin as something that can be unpacked, or hold text."""
    known = (b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"ARROW1", b"\x89PNG", b"BZh", b"\xfd7zXZ", *_ZLIB)
    return data.startswith(known) or b"{" in data[:64] or data[:64].isascii()


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is packed into some bytes, by what they begin with."""
    for magic, name, unpack in _COMPRESSED:
        if data.startswith(magic):
            yield name, unpack(data)
    if data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield "zip comment", archive.comment
            for member in archive.namelist():
                yield member, archive.read(member)
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive.getmembers():
                file = archive.extractfile(entry)
                yield entry.name, file.read() if file is not None else b""
    elif data.startswith(b"PAR1"):
        yield from _columns(parquet.ParquetFile(io.BytesIO(data)).read())
    elif data.startswith(b"ARROW1"):
        yield from _columns(pyarrow.feather.read_table(io.BytesIO(data)))
    elif data.startswith(b"\x89PNG"):
        yield from _png_texts(data)


_COMPRESSED: tuple[tuple[bytes | tuple[bytes, ...], str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", gzip.decompress),
    (b"BZh", "bzip2", bz2.decompress),
    (b"\xfd7zXZ", "xz", lzma.decompress),
    (_ZLIB, "zlib", lambda data: zlib.decompressobj().decompress(data)),
)


def _columns(table: pa.Table) -> Iterator[tuple[str, bytes]]:
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = pa.chunked_array(column).unique() if not pa.types.is_nested(column.type) else column
        text = "\n".join(
            value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in values.to_pylist()
        )
        yield f"column {name}", text.encode()


def _png_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        if kind == b"zTXt":
            yield "PNG text", zlib.decompress(body.partition(b"\0")[2][1:])
        elif kind == b"iTXt":
            keyword, _, rest = body.partition(b"\0")
            packed, text = rest[0], rest[2:].split(b"\0", 2)[2]
            yield f"PNG text {keyword.decode()}", zlib.decompress(text) if packed else text
        position += 12 + length

"""The scanner that the proofs of privacy rest on: it finds what is planted, wherever and however."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import sqlite3
import struct
import tarfile
import urllib.parse
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from pyarrow import parquet

from churn_platform_tests.leaks import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "Zoë Q7xK-29 <mail@example.com>"
NUMBER = "83217.43"
NOISE = b"nothing of interest; " * 50

FORMS: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "upper case": lambda text: text.upper().encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 big-endian": lambda text: text.encode("utf-16-be"),
    "URL": lambda text: urllib.parse.quote(text).encode(),
    "JSON": lambda text: json.dumps(text).encode(),
    "hexadecimal": lambda text: text.encode().hex().encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64, one byte on": lambda text: base64.b64encode(b"x" + text.encode()),
    "base64 for URLs, two bytes on": lambda text: base64.urlsafe_b64encode(b"xy" + text.encode() + b"z"),
}


def _zip(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", data)
    return stream.getvalue()


def _tar(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("inside")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _parquet(data: bytes) -> bytes:
    stream = io.BytesIO()
    table = pa.table({"a": ["x"] * 1000, "b": [*(str(n) for n in range(999)), data.decode("latin-1")]})
    parquet.write_table(table, stream, compression="zstd", use_dictionary=False, write_statistics=False)
    return stream.getvalue()


def _feather(data: bytes) -> bytes:
    stream = io.BytesIO()
    pyarrow.feather.write_feather(pa.table({"b": [data] * 3}), stream, compression="zstd")
    return stream.getvalue()


def _png(data: bytes) -> bytes:
    body = b"Comment\0\0" + zlib.compress(data)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return b"\x89PNG\r\n\x1a\n" + chunk


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zlib": zlib.compress,
    "zip": _zip,
    "tar": _tar,
    "Parquet": _parquet,
    "Arrow": _feather,
    "PNG": _png,
    "a page with a data URI": lambda data: b"<img src='data:;base64," + base64.b64encode(gzip.compress(data)) + b"'>",
    "gzip in a zip": lambda data: _zip(gzip.compress(data)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_secret_is_found_in_every_form(tmp_path: Path, form: str) -> None:
    (tmp_path / "log").write_bytes(NOISE + FORMS[form](SECRET) + NOISE)
    assert {leak.secret for leak in Scanner([SECRET]).tree(tmp_path)} == {SECRET}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_planted_secret_is_found_in_every_wrapping(tmp_path: Path, wrapping: str) -> None:
    data = WRAPPINGS[wrapping](NOISE + b"client-Q7xK29vTd8" + NOISE)
    assert b"client-Q7xK29vTd8" not in data or wrapping in {"tar", "Arrow"}
    (tmp_path / "file").write_bytes(data)
    (leak, *_) = Scanner(["client-q7xk29vtd8"]).tree(tmp_path)
    assert str(tmp_path / "file") in leak.place


def test_a_number_is_found_as_text_and_in_columns_and_arrays_of_floats(tmp_path: Path) -> None:
    value = float(NUMBER)
    (tmp_path / "text").write_text(f"income={NUMBER}")
    np.save(tmp_path / "array.npy", np.array([1.0, value]))
    np.savez_compressed(tmp_path / "arrays.npz", a=np.array([1.0, value]))
    parquet.write_table(pa.table({"income": [1.0, value]}), tmp_path / "table.parquet")
    with sqlite3.connect(tmp_path / "base.db") as con:
        con.execute("CREATE TABLE t (x REAL)")
        con.execute("INSERT INTO t VALUES (?)", [value])
    con.close()
    places = " ".join(leak.place for leak in Scanner([NUMBER]).tree(tmp_path))
    assert all(name in places for name in ("text", "array.npy", "arrays.npz", "table.parquet", "base.db"))


def test_a_value_of_a_database_is_unpacked_and_one_that_was_deleted_is_still_found(tmp_path: Path) -> None:
    con = sqlite3.connect(tmp_path / "base.db")
    con.execute("CREATE TABLE t (body BLOB)")
    con.execute("INSERT INTO t VALUES (?)", [zlib.compress(b"packed-Q7xK29vTd8")])
    con.execute("INSERT INTO t VALUES (?)", ["x" * 5000 + "long-Q7xK29vTd8" + "x" * 5000])
    con.execute("INSERT INTO t VALUES ('deleted-Q7xK29vTd8')")
    con.commit()
    con.execute("PRAGMA secure_delete = OFF")
    con.execute("DELETE FROM t WHERE body = 'deleted-Q7xK29vTd8'")
    con.commit()
    con.close()
    secrets = ["packed-Q7xK29vTd8", "long-Q7xK29vTd8", "deleted-Q7xK29vTd8"]
    assert {leak.secret for leak in Scanner(secrets).tree(tmp_path)} == set(secrets)


def test_a_secret_in_the_name_of_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "export-Q7xK29vTd8.csv").touch()
    assert len(Scanner(["Q7xK29vTd8"]).tree(tmp_path)) == 1


def test_nothing_is_found_where_nothing_is_and_what_is_skipped_is_not_looked_at(tmp_path: Path) -> None:
    for name, wrap in WRAPPINGS.items():
        (tmp_path / name).write_bytes(wrap(NOISE))
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "source.csv").write_text(SECRET)
    scanner = Scanner([SECRET, NUMBER])
    assert scanner.tree(tmp_path, skip=[tmp_path / "landing"]) == []
    assert scanner.seen > 10 * len(NOISE)
    assert scanner.tree(tmp_path) != []

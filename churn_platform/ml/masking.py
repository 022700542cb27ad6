"""Masking of personal data: a keyed hash, a bucket, or nothing left at all.

The hash is HMAC-SHA256 (RFC 2104), so that whoever does not hold the key cannot find a customer by hashing guesses.
It is computed in SQL, where the rows are, and once more in Python for a single value; a test holds the two equal.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

    from churn_platform.contract import Column

_BLOCK = 64  # bytes, of SHA-256
_DIGITS = 32  # 128 bits of the digest: enough that no two customers collide


def pseudonym(key: bytes, value: str) -> str:
    """The masked form of one value: 32 hex digits."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def install_key(con: duckdb.DuckDBPyConnection, key: bytes) -> None:
    """Give a connection the key, as variables: SQL text ends up in error messages and logs, variables do not."""
    if len(key) > _BLOCK:
        key = hashlib.sha256(key).digest()
    padded = key.ljust(_BLOCK, b"\0")
    con.execute("SET VARIABLE pii_inner = ?::BLOB", [bytes(byte ^ 0x36 for byte in padded)])
    con.execute("SET VARIABLE pii_outer = ?::BLOB", [bytes(byte ^ 0x5C for byte in padded)])


def masked(column: Column, typed: str) -> str:
    """SQL for a column's value as it may be stored, from SQL for its typed value."""
    if column.pii == "hash":
        inner = f"unhex(sha256(getvariable('pii_inner') || encode(CAST({typed} AS VARCHAR))))"
        return f"left(sha256(getvariable('pii_outer') || {inner}), {_DIGITS})"
    if column.pii == "bucket":
        return f"floor(({typed}) / {column.bucket}) * {column.bucket}"
    return typed


def masked_type(column: Column) -> str:
    """The contract's type of a column after masking."""
    if column.pii == "hash":
        return "string"
    return "float" if column.pii == "bucket" else column.type

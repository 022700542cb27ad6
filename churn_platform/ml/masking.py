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


def derived(key: bytes, purpose: str) -> bytes:
    """A key for another purpose, so that what is hashed for it is not the pseudonym (HKDF-Expand, RFC 5869)."""
    return hmac.new(key, purpose.encode() + b"\x01", hashlib.sha256).digest()


def install_key(con: duckdb.DuckDBPyConnection, key: bytes, name: str = "pii") -> None:
    """Give a connection a key, as variables: SQL text ends up in error messages and logs, variables do not."""
    if len(key) > _BLOCK:
        key = hashlib.sha256(key).digest()
    padded = key.ljust(_BLOCK, b"\0")
    con.execute(f"SET VARIABLE {name}_inner = ?::BLOB", [bytes(byte ^ 0x36 for byte in padded)])
    con.execute(f"SET VARIABLE {name}_outer = ?::BLOB", [bytes(byte ^ 0x5C for byte in padded)])


def hashed(text: str, name: str = "pii") -> str:
    """SQL for the masked form of SQL for a text, by an installed key."""
    inner = f"unhex(sha256(getvariable('{name}_inner') || encode({text})))"
    return f"left(sha256(getvariable('{name}_outer') || {inner}), {_DIGITS})"


def masked(column: Column, typed: str) -> str:
    """SQL for a column's value as it may be stored, from SQL for its typed value."""
    if column.pii == "hash":
        return hashed(f"CAST({typed} AS VARCHAR)")
    if column.pii == "bucket":
        return f"floor(({typed}) / {column.bucket}) * {column.bucket}"
    return typed


def masked_type(column: Column) -> str:
    """The contract's type of a column after masking."""
    if column.pii == "hash":
        return "string"
    return "float" if column.pii == "bucket" else column.type

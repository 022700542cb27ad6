"""The bytes in which Feast 0.67 keeps features online, read without Feast and without protobuf.

Entity keys are of version 3. A value is a ValueProto message with one field at most; a time in Redis is a protobuf
Timestamp. Format: `docs/specs/online_store_format.md` in Feast's sources, and `Value.proto`.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from features.online import Layout

_STRING, _INT64 = 2, 4  # Feast's ValueType
_DOUBLE = 5 << 3 | 1  # protobuf's tag of the field double_val: its number and how it is written
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_read_double = struct.Struct("<d").unpack_from
_read_float = struct.Struct("<f").unpack_from


class FormatError(ValueError):
    """Bytes that are not as Feast writes features of a contract. The message tells of their form, not of the values."""


# -- entity keys


def key_maker(layout: Layout, tail: bytes = b"") -> Callable[[str | int], bytes]:
    """Makes entity keys of customers, each with the same bytes behind it.

    A customer who cannot be in the store, because its number takes more than 64 bits, has a key that nobody has.
    """
    name = layout.customer.encode()
    head = struct.pack("<III", 1, _STRING, len(name)) + name
    if layout.integer_customers:
        head += struct.pack("<II", _INT64, 8)

        def of_number(customer: str | int) -> bytes:
            number = int(customer)
            return head + number.to_bytes(8, "little", signed=True) + tail if _SMALLEST <= number <= _LARGEST else tail

        return of_number
    head += struct.pack("<I", _STRING)

    def of_text(customer: str | int) -> bytes:
        text = str(customer).encode("utf-8", "surrogatepass")
        return head + len(text).to_bytes(4, "little") + text + tail

    return of_text


def redis_field(view: str, feature: str) -> bytes:
    """The field of a customer's hash in Redis that holds a feature."""
    return murmur3(f"{view}:{feature}".encode()).to_bytes(4, "little")


def murmur3(data: bytes) -> int:
    """MurmurHash3 for 32 bits, with seed 0."""

    def rotated(number: int, bits: int) -> int:
        return (number << bits | number >> (32 - bits)) & 0xFFFFFFFF

    result = 0
    for start in range(0, len(data), 4):
        piece = data[start : start + 4]
        mixed = rotated(int.from_bytes(piece, "little") * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF
        result ^= mixed
        if len(piece) == 4:
            result = (rotated(result, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    result ^= len(data)
    result = (result ^ result >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    result = (result ^ result >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return result ^ result >> 16


# -- values


def values(messages: Iterable[bytes | None]) -> list[float | str | None]:
    """The values of ValueProto messages; None for one that is missing or not a number.

    Raises:
        FormatError: a message holds something else than a number, a text, true or false.
    """
    found: list[float | str | None] = []
    for message in messages:
        if not message:
            found.append(None)
        elif message[0] == _DOUBLE and len(message) == 9:  # nearly all
            (number,) = _read_double(message, 1)
            found.append(number if number == number else None)  # noqa: PLR0124 - what is not a number
        else:
            found.append(_other_value(message))
    return found


@lru_cache(8192)  # categories: few different texts, again and again
def _other_value(message: bytes) -> float | str | None:
    """A value that is not a double."""
    number, end = _varint(message, 0)
    field, wire = number >> 3, number & 7
    value: float | str | None
    if (field, wire) == (2, 2):
        length, start = _varint(message, end)
        end = start + length
        if end > len(message):
            raise FormatError(f"a text of {length} bytes stands in a message of {len(message)}.")
        value = message[start:end].decode()
    elif (field, wire) in ((3, 0), (4, 0)):
        value, end = _varint(message, end)
        value = _signed(value)
    elif (field, wire) in ((7, 0), (19, 0)):
        value, end = _varint(message, end)
        value = bool(value) if field == 7 else None
    elif (field, wire) == (6, 5) and len(message) == 5:
        (value,) = _read_float(message, 1)
        value, end = value if value == value else None, 5  # noqa: PLR0124
    else:
        raise FormatError(
            f"a value of {len(message)} bytes is of field {field}, wire type {wire} of Feast's ValueProto: no number, "
            "text, true or false. The feature store was not written by this platform's version of Feast."
        )
    if end != len(message):
        raise FormatError(f"a value ends after {end} bytes of {len(message)}.")
    return value


def _varint(message: bytes, start: int) -> tuple[int, int]:
    """A number of 64 bits and where it ends."""
    number = 0
    for place in range(10):
        if start + place >= len(message):
            break
        byte = message[start + place]
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number & 0xFFFFFFFFFFFFFFFF, start + place + 1
    raise FormatError(f"a number in a message of {len(message)} bytes has no end.")


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


@lru_cache(1024)  # few different instants: all customers of a snapshot have the same
def instant(message: bytes) -> float:
    """The seconds since 1970 of a protobuf Timestamp, to the microsecond.

    Raises:
        FormatError: it is no Timestamp.
    """
    parts, place = {1: 0, 2: 0}, 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag not in (8, 16):
            raise FormatError(f"a time holds a field with the tag {tag}: it is no protobuf Timestamp.")
        number, place = _varint(message, place)
        parts[tag >> 3] = _signed(number)
    return (parts[1] * 1_000_000 + parts[2] // 1000) / 1_000_000

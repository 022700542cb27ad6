"""One form of a text, so that two ways to write the same id are one customer: in SQL at ingestion, here elsewhere."""

from __future__ import annotations

import unicodedata

# Spaces and line ends of all kinds, and what nobody sees, such as the byte order mark that spreadsheets leave.
TRIMMED = "\t\n\r \u00a0\u00ad\u1680\u202f\u205f\u2060\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x2010)))


def plain(value: str) -> str:
    """A text as ingestion stores it: nothing unseen around it, and in NFC, one form of what Unicode holds equal."""
    return unicodedata.normalize("NFC", value.strip(TRIMMED))

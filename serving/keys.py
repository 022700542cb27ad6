"""API keys: several, stored as hashes, changed without a restart; and how often each may ask.

A key is a long random text, so one round of SHA-256 protects it: there is no guessing to slow down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{64})")
_LOOK_AGAIN = 1.0  # seconds between two looks at the file


class KeysError(ValueError):
    """The file of API keys cannot be used; the message says where and why, and holds no hash."""


def hashed(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def line(name: str, key: str) -> str:
    """The line of a file of API keys.

    Raises:
        KeysError: such a name cannot be written.
    """
    text = f"{name}:{hashed(key)}"
    if _LINE.fullmatch(text) is None:
        raise KeysError(f"the name {name!r} must be 1 to 64 letters, digits, dots, hyphens or underscores.")
    return text


def read(path: Path) -> dict[str, str]:
    """Names to hashes. A name may stand twice, with the old key and the new one, while callers change over.

    Raises:
        KeysError: the file is missing or empty, or a line of it is not `name:sha256`.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"the API keys in {path} cannot be read: {error}") from None
    found: dict[str, str] = {}
    for number, one in enumerate(lines, start=1):
        text = one.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise KeysError(f"{path}, line {number}: not name:sha256. `churn api-key NAME` makes such a line.")
        found[match[2]] = match[1]
    if not found:
        raise KeysError(f"{path} has no API key, so nobody could ask. `churn api-key NAME` makes one.")
    return found


class Keys:
    """The keys in force: those of a file as it is now.

    Args:
        path: the file.
        clock: seconds, monotonic.

    Raises:
        KeysError: the file cannot be used. Once it could be, a spoilt one is ignored and the keys before it hold.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.problem = ""  # what is wrong with the file now
        self._clock = clock
        self._names = read(path)
        self._seen = self._state()
        self._looked = clock()

    def owner(self, key: str) -> str | None:
        """The name that a key goes by, or None for a key that is none. Takes as long for either."""
        if self._clock() - self._looked > _LOOK_AGAIN:
            self._look()
        asked = hashed(key)
        owner = None
        for stored, name in self._names.items():
            if hmac.compare_digest(stored, asked):
                owner = name
        return owner

    def _look(self) -> None:
        self._looked = self._clock()
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._names, self.problem = read(self.path), ""
        except KeysError as error:
            self.problem = str(error)

    def _state(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


class RateLimit:
    """A token bucket for each key: `burst` at once, `rate` a second in the long run.

    Args:
        rate: tokens that come back each second.
        burst: tokens that a bucket holds.
        clock: seconds, monotonic.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # name to tokens, and when they were counted

    def wait(self, name: str, cost: int = 1) -> float:
        """Take tokens; returns 0, or the seconds until they can be had, and takes none then.

        More than `burst` are never there at once, so a dearer request takes a full bucket and leaves a debt.
        """
        now = self._clock()
        tokens, then = self._buckets.get(name, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - then) * self.rate)
        needed = min(cost, self.burst)
        if tokens < needed:
            self._buckets[name] = tokens, now
            return (needed - tokens) / self.rate
        self._buckets[name] = tokens - cost, now
        return 0.0

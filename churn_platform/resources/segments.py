"""Segments: the files in which the endpoint leaves what it answered, until it is landed (docs/prediction_log.md).

A segment is `<name>.jsonl`, a JSON object per line; while it is written, `<name>.jsonl.open`. Lines that could not be
landed stand beside in `<name>.rejected`. They lie in a folder, or under an s3:// prefix.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_platform.resources.folder import PART, Folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


FINISHED, OPEN, REJECTED = ".jsonl", ".jsonl.open", ".rejected"
_LEFT_SECONDS = 60  # a segment is made before its writer locks it: what is younger is never taken for left
_CHUNK = 16 * 1024 * 1024  # bytes that are read at a time


class Segments(Folder):
    """The segments of a contract."""

    def names(self, ending: str) -> dict[str, int]:
        """The files of a kind and their sizes in bytes, oldest first; `ending` is FINISHED, OPEN or REJECTED."""
        filesystem, folder = self._place
        try:
            listed = filesystem.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        found = {str(entry["name"]).rpartition("/")[2]: int(entry["size"] or 0) for entry in listed}
        return {name: found[name] for name in sorted(found) if name.endswith(ending)}

    def written_at(self, name: str) -> datetime:
        """When a file was last written."""
        moment: datetime = self._place[0].modified(self._path(name))
        return moment.replace(tzinfo=moment.tzinfo or UTC)

    def chunks(self, name: str) -> Iterator[list[bytes]]:
        """The lines of a file, some at a time; each ends as it does there, so that one that was cut can be told."""
        rest = b""
        with self._place[0].open(self._path(name), "rb") as file:
            while data := file.read(_CHUNK):
                *lines, rest = (rest + data).split(b"\n")
                yield [line + b"\n" for line in lines]
        if rest:
            yield [rest]

    def finish_left(self) -> None:
        """Finish what a killed process was writing, and remove what another left half-written.

        Whether somebody writes a segment is told by the lock that its writer holds. That is known on this machine only;
        in S3 there are no open segments.
        """
        if not self._is_local:
            return
        for name in self.names(PART):
            self.remove(name)
        for name in self.names(OPEN):
            path = Path(self._path(name))
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                        path.replace(path.with_suffix(""))
            except (FileNotFoundError, BlockingIOError):  # finished meanwhile, or being written
                continue

    # -- erasure

    def holding(self, forms: Collection[str]) -> list[str]:
        """The finished and rejected segments that name a customer, who is called by any of `forms`."""
        names = [*self.names(FINISHED), *self.names(REJECTED)]
        return [name for name in names if any(_names(line, forms) for lines in self.chunks(name) for line in lines)]

    def erase(self, forms: Collection[str]) -> int:
        """Take a customer's lines out of all segments that nobody writes; returns how many they were.

        A line that cannot be read goes when the customer's key stands anywhere in it. What was cut goes in any case:
        the key may be what the cut went through.
        """
        self.finish_left()
        removed = 0
        for name in [*self.names(FINISHED), *self.names(REJECTED)]:
            lines = [line for chunk in self.chunks(name) for line in chunk]
            theirs = [_names(line, forms) for line in lines]
            kept = [line for line, named in zip(lines, theirs, strict=True) if not named and not _was_cut(line)]
            removed += sum(theirs)
            if len(kept) < len(lines):
                self.put(name, b"".join(kept))
        return removed


def _names(line: bytes, forms: Collection[str]) -> bool:
    """Whether a line is about a customer, as far as it can be read."""
    said = _read(line)
    if isinstance(said, dict) and "customer" in said:
        return str(said["customer"]) in forms
    text = line.decode(errors="backslashreplace")
    written = {form for key in forms for form in (key, json.dumps(key)[1:-1])}
    return any(re.search(rf"(?<![0-9A-Za-z]){re.escape(form)}(?![0-9A-Za-z])", text) for form in written)


def _was_cut(line: bytes) -> bool:
    return not line.endswith(b"\n") and _read(line) is None


def _read(line: bytes) -> Any:
    """What a line says; None where it cannot be read."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None

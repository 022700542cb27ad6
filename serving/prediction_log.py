"""The prediction log: every answer, kept without making anybody wait for it.

Answers go into a list in memory; a thread writes them to a segment, a file of JSON lines, every half second and has the
disk take them in. A process that is killed loses at most what came since: `FLUSH_SECONDS`. A segment that has been
written for a while is finished: renamed on this machine, or uploaded where the log lies in S3. The platform lands
finished segments in the table `prediction_log` (docs/prediction_log.md).

The list is bounded. When the disk cannot keep up or is full, what does not fit is not kept, and counted:
`churn_predictions_not_logged_total`. An answer is never held back for the log.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger("bentoml.churn")

FLUSH_SECONDS = 0.5
LARGEST_BACKLOG = 50_000  # answers in memory, about 50 MB
LARGEST_SEGMENT = 64 * 1024 * 1024  # bytes
OPEN = ".open"


class Answered(msgspec.Struct, omit_defaults=False):
    """A line of the log. Field for field what docs/prediction_log.md describes."""

    id: str
    at: str  # ISO 8601, UTC
    customer: str | int
    version: str
    arm: str
    probability: float
    threshold: float
    decision: str
    feature_timestamp: str
    stale: bool
    features: dict[str, Any]
    shadow_version: str | None = None
    shadow_probability: float | None = None


class PredictionLog:
    """Writes answers to segments.

    Args:
        target: where finished segments go: a folder, or s3://bucket/prefix.
        spool: a folder on this machine where they are written; the target itself where that is a folder.
        segment_seconds: after so long a segment is finished.
        dropped: called with the number of answers that could not be kept.
    """

    def __init__(
        self,
        target: str,
        spool: Path,
        segment_seconds: float = 60.0,
        dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.target = target
        self.spool = Path(target) if "://" not in target else spool
        self.segment_seconds = segment_seconds
        self._dropped = dropped
        self._waiting: deque[Answered] = deque()
        self._encoder = msgspec.json.Encoder()
        self._host = socket.gethostname()[:64].replace("/", "_")
        self._file: IO[bytes] | None = None
        self._path: Path | None = None
        self._began = 0.0
        self._number = 0
        self._problem = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="prediction-log", daemon=True)

    def start(self) -> None:
        """Begin to write, in a thread. What a process that is no more left behind is finished first."""
        self._thread.start()

    def add(self, answers: Sequence[Answered]) -> None:
        """Keep answers. Never waits."""
        room = LARGEST_BACKLOG - len(self._waiting)
        if room < len(answers):
            self._dropped(len(answers) - max(0, room))
            answers = answers[: max(0, room)]
        self._waiting.extend(answers)

    def close(self) -> None:
        """Write what is waiting and finish the segment."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)

    # -- the thread

    def _keep_writing(self) -> None:
        self._guarded(self._finish_leftovers)
        while not self._stop.wait(FLUSH_SECONDS):
            self._guarded(self._flush)
            if self._file is not None and time.monotonic() - self._began > self.segment_seconds:
                self._guarded(self._finish)
            self._guarded(self._upload)
        self._guarded(self._flush)
        self._guarded(self._finish)
        self._guarded(self._upload)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Work that may fail without ending the thread: a full disk is emptied one day."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with disk or network, the next round tries again
            problem = f"the prediction log cannot be written: {type(error).__name__}: {error}"
            if problem != self._problem:
                log.error("%s", problem)  # noqa: TRY400 - the message says it all
            self._problem = problem
        else:
            if self._problem and work == self._flush:
                log.info("the prediction log is written again")
                self._problem = ""

    def _flush(self) -> None:
        count = len(self._waiting)
        if not count:
            return
        if self._file is None:
            self._open()
        file = self._file
        assert file is not None  # noqa: S101 - for the type checker
        lines = [self._encoder.encode(self._waiting[place]) for place in range(count)]
        start = file.tell()
        try:
            file.write(b"\n".join(lines) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)  # half of it may be there: it is written whole the next time
            file.seek(start)
            raise
        for _ in range(count):
            self._waiting.popleft()
        if file.tell() > LARGEST_SEGMENT:
            self._finish()

    def _open(self) -> None:
        self.spool.mkdir(parents=True, exist_ok=True)
        self._number += 1
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{self._host}-{os.getpid()}-{self._number}.jsonl{OPEN}"
        self._path = self.spool / name
        self._file = self._path.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # until we finish it, or are no more: so others know whose it is
        self._began = time.monotonic()

    def _finish(self) -> None:
        if self._file is None or self._path is None:
            return
        self._path.replace(self._path.with_suffix(""))
        self._file.close()
        self._file = self._path = None

    def _finish_leftovers(self) -> None:
        """Finish the segments of processes that were killed. A line that was cut is for the landing to see."""
        for path in self.spool.glob(f"*.jsonl{OPEN}"):
            if self._left(path):
                with suppress(FileNotFoundError):  # another worker was quicker
                    path.replace(path.with_suffix(""))

    @staticmethod
    def _left(path: Path) -> bool:
        """Whether nobody writes a segment any more."""
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        return True

    def _upload(self) -> None:
        if "://" not in self.target or not self.spool.exists():
            return
        for path in sorted(self.spool.glob("*.jsonl")):
            import fsspec

            # Two workers may upload the same one: it is the same object then, and landed once.
            with suppress(FileNotFoundError), path.open("rb") as source:
                with fsspec.open(f"{self.target}/{path.name}", "wb") as target:
                    shutil.copyfileobj(source, target)
                path.unlink()


class Ids:
    """Texts that no other process makes, at the cost of an addition."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._next = 0

    def __call__(self) -> str:
        """The next one."""
        self._next += 1
        return f"{self._prefix}-{self._next:x}"

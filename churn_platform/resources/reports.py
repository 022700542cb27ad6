"""Reports: pages and plots for people, in a folder or bucket that every process of the platform reaches.

On one machine `churn up` serves that folder, because a browser opens no file that a page of Dagster links to.
"""

from __future__ import annotations

import mimetypes
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from churn_platform.contract import Contract
    from churn_platform.settings import Settings

_PART = ".part"  # being written, or left by a process that was killed at it


@dataclass(frozen=True)
class Kept:
    """Where a report is."""

    path: str
    url: str | None  # None where no server is known that shows it


class Reports:
    """The reports of a contract, by their file names."""

    def __init__(self, contract: Contract, settings: Settings) -> None:
        self.root = f"{settings.reports_folder}/{contract.name}"
        server = settings.reports_server
        self.url = None if server is None else f"{server}/{contract.name}"

    def keep(self, name: str, content: str | bytes) -> Kept:
        """Write a report whole, in place of an earlier one of its name."""
        data = content.encode() if isinstance(content, str) else content
        filesystem, folder = self._place
        if "://" in self.root:  # an object is there whole or not at all; a browser shows it if it is told what it is
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            filesystem.pipe_file(f"{folder}/{name}", data, ContentType=kind)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=_PART, delete=False) as file:
                file.write(data)
            part = Path(file.name)
            part.chmod(0o644)  # the server of the reports may be another user
            part.replace(Path(folder) / name)
        return Kept(f"{self.root}/{name}", None if self.url is None else f"{self.url}/{name}")

    def drop(self, name: str) -> None:
        """Remove a report, if it is there."""
        filesystem, folder = self._place
        with suppress(FileNotFoundError):
            filesystem.rm_file(f"{folder}/{name}")

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        import fsspec

        filesystem, folder = fsspec.url_to_fs(self.root)
        return filesystem, str(folder)

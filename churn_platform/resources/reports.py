"""Reports: pages and plots for people, in a folder or bucket that every process of the platform reaches.

On one machine `churn up` serves that folder, because a browser opens no file that a page of Dagster links to.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem

if TYPE_CHECKING:
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
        files = self._files()
        with files.open_output_stream(f"{name}{_PART}") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        files.move(f"{name}{_PART}", name)
        return Kept(f"{self.root}/{name}", None if self.url is None else f"{self.url}/{name}")

    def drop(self, name: str) -> None:
        """Remove a report, if it is there."""
        with suppress(FileNotFoundError):
            self._files().delete_file(name)

    def _files(self) -> PyFileSystem:
        return PyFileSystem(DeltaStorageHandler(self.root))  # the credentials of the tables

"""Reports: pages and plots for people, in a folder or bucket that every process of the platform reaches.

On one machine `churn up` serves that folder, because a browser opens no file that a page of Dagster links to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_platform.resources.folder import Folder

if TYPE_CHECKING:
    from churn_platform.contract import Contract
    from churn_platform.settings import Settings


@dataclass(frozen=True)
class Kept:
    """Where a report is."""

    path: str
    url: str | None  # None where no server is known that shows it


class Reports:
    """The reports of a contract, by their file names."""

    def __init__(self, contract: Contract, settings: Settings) -> None:
        self._folder = Folder(f"{settings.reports_folder}/{contract.name}")
        server = settings.reports_server
        self._url = None if server is None else f"{server}/{contract.name}"

    def keep(self, name: str, content: str | bytes) -> Kept:
        """Write a report whole, in place of an earlier one of its name."""
        self._folder.put(name, content.encode() if isinstance(content, str) else content)
        return Kept(f"{self._folder.root}/{name}", None if self._url is None else f"{self._url}/{name}")

    def drop(self, name: str) -> None:
        """Remove a report, if it is there."""
        self._folder.remove(name)

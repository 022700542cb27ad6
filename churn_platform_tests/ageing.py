"""Tables that look as if all that happened to them had happened long ago."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from churn_platform.resources.storage import TableStore


def age(store: TableStore, days: float, name: str = "t") -> None:
    """Let everything that a table has done so far have happened so many days earlier."""
    folder, by = Path(store.path(name)), days * 86_400
    for commit in (folder / "_delta_log").glob("*.json"):
        text = re.sub(
            r'("(?:timestamp|deletionTimestamp|modificationTime|createdTime)":)(\d{13})',
            lambda found: f"{found[1]}{int(found[2]) - int(by * 1000)}",
            commit.read_text(),
        )
        commit.write_text(text)
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (path.stat().st_mtime - by,) * 2)

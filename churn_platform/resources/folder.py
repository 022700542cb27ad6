"""A folder of files that are written whole: on local disk, or under an s3:// prefix."""

from __future__ import annotations

import mimetypes
import os
import secrets
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PART = ".part"  # how the name of a file ends that is being written, or was left by a process that was killed at it


class Folder:
    """Files by their names. The folder is made with its first file."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        import fsspec

        filesystem, folder = fsspec.url_to_fs(self.root, use_listings_cache=False)
        return filesystem, str(folder)

    @property
    def _is_local(self) -> bool:
        return "://" not in self.root

    def _path(self, name: str) -> str:
        return f"{self._place[1]}/{name}"

    def put(self, name: str, data: bytes) -> None:
        """Write a file, in place of an earlier one, whole or not at all."""
        if not self._is_local:
            kind, _ = mimetypes.guess_type(name)  # a browser that is not told stores a page instead of showing it
            self._place[0].pipe_file(self._path(name), data, **({"ContentType": kind} if kind else {}))
            return
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.{secrets.token_hex(4)}{PART}")  # of two writers the last one's file stays
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        try:
            self._place[0].rm_file(self._path(name))
        except FileNotFoundError:
            return

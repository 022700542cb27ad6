"""Retention of table versions: what old versions cost is given back, and what a model was trained on stays.

A version of a Delta table is its log up to that version and the files that the log names. Both go here, and only
here: files that no kept version names, and the log before the oldest kept version.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from pyarrow.fs import FileSelector

from churn_platform.resources.storage import MissingVersionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from churn_platform.resources.storage import TableStore

# What is younger is never removed: it may belong to a write that is under way, or a reader may have begun with it.
SAFE_HOURS = 24


class Pruned(NamedTuple):
    """What was removed of a table (or would be), and what stays."""

    files: int
    bytes: int
    log_files: int
    missing: list[int]  # versions that were to be kept and cannot be read any more
    oldest: int  # the oldest version that stays


def prune(tables: TableStore, name: str, pinned: Iterable[int], days: int, dry_run: bool = False) -> Pruned:
    """Remove the files of a table that no kept version needs, and the log before the oldest kept one.

    Kept are the versions that were the newest at some time in the last `days` days, and those in `pinned`. Files of
    writes that were killed before they committed go as well. Nothing goes that is younger than `SAFE_HOURS`, or was
    part of the newest version that recently, so a writer or reader at work finds all that it needs.

    Args:
        tables: the tables.
        name: one of them.
        pinned: versions to keep however old they are.
        days: how long a version is kept after a newer one has replaced it.
        dry_run: remove nothing.
    """
    table = tables.open(name)
    wanted, missing = set(), []
    for version in sorted(set(pinned)):
        try:
            tables.require_version(name, version)
            wanted.add(version)
        except MissingVersionError:
            missing.append(version)
    since = datetime.now(UTC) - timedelta(days=days)
    keep = sorted(wanted | set(_recent(tables, name, table.version(), since)))
    options: dict[str, Any] = {
        "retention_hours": SAFE_HOURS,
        "enforce_retention_duration": False,  # Delta's own is a week
        "full": True,
        "keep_versions": keep,
    }
    # The log remembers removed files long after they went, so Delta lists them again and again; a vacuum that finds
    # nothing else would add two commits each time.
    listed = [str(path).removeprefix(f"{tables.path(name)}/") for path in table.vacuum(dry_run=True, **options)]
    dead = [found for found in tables.files(name).get_file_info(listed) if found.is_file] if listed else []
    if dead and not dry_run:
        table.vacuum(dry_run=False, **options)
    log_files = 0 if dry_run else _shorten_log(tables, name, keep[0])
    return Pruned(len(dead), sum(found.size for found in dead), log_files, missing, keep[0])


def _recent(tables: TableStore, name: str, newest: int, since: datetime) -> list[int]:
    """The versions that were the newest at some time since then, without those that a later one holds whole."""
    found: list[int] = []
    removes = True  # whether the commit that follows takes files away; the newest stays whatever follows
    for version in range(newest, -1, -1):
        if removes:
            found.append(version)
        try:
            actions = tables.commit(name, version)
        except MissingVersionError:  # the log was shortened: nothing older is left
            break
        removes = any("remove" in action for action in actions)
        committed = max(action["commitInfo"]["timestamp"] for action in actions if "commitInfo" in action)
        if datetime.fromtimestamp(committed / 1000, UTC) < since:
            break
    return found


def _shorten_log(tables: TableStore, name: str, oldest: int) -> int:
    """Remove the log before a version, as far as it is past Delta's own retention (30 days); returns how many files."""
    before = _log(tables, name)
    if not any(entry.partition(".")[0].isdigit() and int(entry.partition(".")[0]) < oldest for entry in before):
        return 0
    start = tables.open(name, oldest)
    if f"{oldest:020}.checkpoint.parquet" not in before:
        start.create_checkpoint()  # later versions are read from this one, without the log before it
    start.cleanup_metadata()
    tables.open(name).create_checkpoint()  # readers of the newest version begin with the checkpoint that was made last
    return len(before - _log(tables, name))


def _log(tables: TableStore, name: str) -> set[str]:
    return {entry.base_name for entry in tables.files(name).get_file_info(FileSelector("_delta_log"))}

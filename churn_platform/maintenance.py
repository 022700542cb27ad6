"""Upkeep: old versions of tables are removed by policy, and what killed processes left behind.

Kept are, of every table, the versions of the last `CHURN_KEEP_VERSIONS_DAYS` days, and those that the champion, the
challenger and the newest `CHURN_KEEP_MODELS` models were made of: these can be reproduced however old they are. What
the endpoint answered is kept for `CHURN_KEEP_PREDICTIONS_DAYS` days.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from churn_platform import prediction_log, provenance
from churn_platform.registered import CHALLENGER, CHAMPION
from churn_platform.resources import exports, retention
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from churn_platform.contract import Contract
    from churn_platform.settings import Settings


@dataclass
class Report:
    """What was removed, or would be: table to that, and leftovers of processes."""

    tables: dict[str, retention.Pruned] = field(default_factory=dict)
    exports: int = 0
    export_bytes: int = 0
    leftovers: int = 0
    leftover_bytes: int = 0

    @property
    def bytes(self) -> int:
        """What was given back."""
        return self.leftover_bytes + self.export_bytes + sum(pruned.bytes for pruned in self.tables.values())


def prune(
    contract: Contract, settings: Settings, say: Callable[[str], None] = lambda _: None, dry_run: bool = False
) -> Report:
    """Remove what the policy keeps no longer.

    It is safe beside writers and readers (`resources.retention`), and killed half-way the next one finishes.

    Args:
        contract: names the tables and the model.
        settings: the policy, and where things are.
        say: told what was removed and what is kept, and why.
        dry_run: remove nothing.
    """
    tables = TableStore(settings.tables_of(contract))
    pinned = pins(Tracking(contract, settings), settings.keep_models)
    report, verb = Report(), "would remove" if dry_run else "removed"
    say(f"kept: the versions of the last {settings.keep_versions_days} days (CHURN_KEEP_VERSIONS_DAYS), and")
    for model, needed in _by_model(pinned).items():
        say(f"  what {model} was made of: " + ", ".join(f"{name}@{version}" for name, version in needed))
    place = prediction_log.segments(contract, settings)
    days, rejected = prediction_log.prune(tables, place, settings.keep_predictions_days, dry_run)
    if days or rejected:
        old = f"{len(days):,} days older than {settings.keep_predictions_days} days, {rejected:,} rejected segments"
        say(f"  {prediction_log.TABLE:<28} {verb} {old}")
    for name in tables.names():
        found = retention.prune(tables, name, pinned[name], settings.keep_versions_days, dry_run)
        report.tables[name] = found
        if found.files or found.log_files:
            say(f"  {name:<28} {verb} {found.files:,} files, {_size(found.bytes)}; {found.log_files:,} log files")
        for version in found.missing:
            say(f"  {name:<28} version {version} is gone already: {pinned[name][version]} cannot be reproduced")
    report.exports, report.export_bytes = exports.prune(tables, settings.keep_versions_days, dry_run)
    if report.exports:
        say(f"  {exports.FOLDER:<28} {verb} {report.exports:,} files, {_size(report.export_bytes)}")
    for path in leftovers(settings):
        report.leftovers += 1
        report.leftover_bytes += _weight(path)
        if not dry_run:
            discard(path)
    if report.leftovers:
        say(f"  {'killed processes':<28} {verb} {report.leftovers:,} leftovers, {_size(report.leftover_bytes)}")
    say(f"{verb} {_size(report.bytes)} in all" if report.bytes else "nothing to remove")
    return report


def pins(tracking: Tracking, newest: int) -> dict[str, dict[int, str]]:
    """Table to version to the models that were made of it, for the models that must stay reproducible."""
    versions = sorted(tracking.versions(), key=lambda version: -int(version.version))
    titles: dict[str, list[str]] = defaultdict(list)
    for alias in (CHAMPION, CHALLENGER):
        held = tracking.version_of(alias)
        if held is not None:
            titles[str(held.version)].append(alias)
    kept = [v for place, v in enumerate(versions) if place < newest or str(v.version) in titles]
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for version in kept:
        number = str(version.version)
        words = f"model {number}" + (f" ({', '.join(titles[number])})" if number in titles else "")
        for name, table_version in provenance.recorded(version).items():
            others = found[name].get(table_version)
            found[name][table_version] = f"{others} and {words}" if others else words
    return found


def _by_model(pinned: dict[str, dict[int, str]]) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, versions in pinned.items():
        for version, words in versions.items():
            for model in words.split(" and "):
                found[model].append((name, version))
    return found


def leftovers(settings: Settings, untouched_hours: float = retention.SAFE_HOURS) -> Iterator[Path]:
    """What killed processes left in the home, untouched for a day: spilled blocks and half-landed files.

    The day counts even where no such process runs here: a home may be shared with another machine or container.
    """
    old = time.time() - untouched_hours * 3600
    candidates = [*(settings.home / "spill").glob("*-*"), *settings.landing.glob("*/*/.*.parquet.*")]
    for path in candidates:
        pid = path.name.partition("-")[0] if path.is_dir() else path.suffix[1:]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and _touched(path) < old:
            yield path


def discard(path: Path) -> None:
    """Remove a file or a folder; one that is gone already is no error."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _touched(path: Path) -> float:
    return max(entry.stat().st_mtime for entry in (path, *path.rglob("*")))


def _weight(path: Path) -> int:
    return sum(entry.stat().st_size for entry in (path, *path.rglob("*")) if entry.is_file())


def _size(count: int) -> str:
    size, units = float(count), ["bytes", "KB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:,.0f} {units[0]}" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"

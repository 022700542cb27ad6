"""Promotion and rollback: which version is champion, and a log of how it came to be.

The registry's alias is moved in one atomic step, so there is exactly one champion whatever is killed. The log is a
table that is only ever appended to. An entry is written before the alias is moved, and confirmed with the version
afterwards: an entry whose alias never moved is recognised by the next action, which says so in an entry of its own. An
alias that somebody moved by other means is noticed likewise, and entered as what it is.

On one machine, actions wait for each other. Those of several machines, such as a `churn rollback` beside a run on
Kubernetes, notice each other in the log: whoever finds a line there that was not when it began withdraws its own, and
what another machine has announced and not done is given a minute before it counts as cut short.

The log keeps as well when a canary was started and stopped. These lines make no version champion.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from churn_platform import provenance
from churn_platform.registered import CANARY, CHALLENGER, CHAMPION
from churn_platform.resources.tracking import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow.entities.model_registry import ModelVersion

    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import Tracking
    from churn_platform.settings import Settings

LOG = "promotion_log"
PROMOTION, ROLLBACK = "promotion", "rollback"
OUTSIDE = "outside"  # the alias was moved by something else than this module
DROPPED = "dropped"  # the entry that it is about was written, and then its process was killed
CANARY_STARTED, CANARY_STOPPED = "canary_started", "canary_stopped"
IN_FLIGHT = timedelta(minutes=1)  # so long another machine may take between announcing an action and doing it
_OF_CHAMPIONS = (PROMOTION, ROLLBACK, OUTSIDE)

_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("event", pa.string()),
        ("version", pa.string()),
        ("previous", pa.string()),
        ("by", pa.string()),
        ("why", pa.string()),
        ("promoted_at", pa.timestamp("us", "UTC")),
        ("about", pa.string()),
        ("window", pa.string()),
        ("training_set_version", pa.int64()),
        ("test_roc_auc", pa.float64()),
        ("data_versions", pa.string()),
        ("evidence", pa.string()),
        ("dagster_run", pa.string()),
        ("host", pa.string()),
    ]
)


@dataclass(frozen=True)
class Entry:
    """A line of the log. `data_versions` and `evidence` are JSON: tables' versions; verdicts and metrics."""

    event: str
    version: str | None
    previous: str | None = None
    by: str = ""
    why: str = ""
    dagster_run: str | None = None
    about: str | None = None  # the id of the entry that was dropped
    window: str | None = None
    training_set_version: int | None = None
    test_roc_auc: float | None = None
    data_versions: str = "{}"
    evidence: str = "{}"
    number: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    promoted_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    host: str = field(default_factory=socket.gethostname)


def entries(tables: TableStore) -> list[Entry]:
    """Every line of the log, oldest first, those of actions that were cut short included."""
    if tables.version(LOG) is None:
        return []
    known = {entry.name for entry in fields(Entry)}
    lines = tables.open(LOG).to_pyarrow_table().to_pylist()
    # lines from before there were events are promotions
    found = [
        Entry(
            **{"event": PROMOTION}
            | {name: value for name, value in line.items() if name in known and value is not None}
            | {"version": line["version"]}
        )
        for line in lines
    ]
    return sorted(found, key=lambda entry: (entry.number, entry.promoted_at))


def took_effect(log: Sequence[Entry]) -> list[Entry]:
    """The lines of a log that made a version champion, as far as the log itself knows."""
    dropped = {entry.about for entry in log if entry.event == DROPPED}
    return [entry for entry in log if entry.event in _OF_CHAMPIONS and entry.id not in dropped]


def history(tables: TableStore, tracking: Tracking) -> list[Entry]:
    """The lines of the log that made a version champion, oldest first; writes nothing.

    An action that was killed before it moved the alias is not in it, whether that has been entered yet or not.
    """
    log = entries(tables)
    unsettled = _unsettled(log, tracking)
    return took_effect([*log, unsettled] if unsettled is not None else log)


def promote(
    tables: TableStore, tracking: Tracking, version: str, by: str, dagster_run: str | None = None
) -> Entry | None:
    """Make a version the champion that has passed every gate.

    Args:
        tables: hold the log.
        tracking: the registry.
        version: its number.
        by: who or what asks for it.
        dagster_run: the run that does it.

    Returns:
        The line of the log, or None where the version is the champion already.

    Raises:
        RegistryError: not every gate of the contract has passed for this version, it was rolled back from, or another
            machine promotes or rolls back at this moment. Nothing has changed then.
    """
    with _alone(tracking.settings):
        lines = _settle(tables, tracking)
        log = took_effect(lines)
        model = tracking.version(version)
        before = _champion(tracking)
        tracking.require_passed(version)
        if before == version:
            return None
        undone = next((entry for entry in reversed(log) if version in (entry.version, entry.previous)), None)
        if undone is not None and undone.event == ROLLBACK and undone.previous == version:
            raise RegistryError(
                f"version {version} may not be champion again by itself: it was rolled back from on "
                f"{undone.promoted_at:%Y-%m-%d %H:%M} UTC by {undone.by}. Train a new candidate (job `retrain`), or "
                f"bring this one back with `churn rollback {version}`."
            )
        entry = Entry(
            PROMOTION, version, before, by, "every gate has passed", dagster_run, **_evidence(tracking, model)
        )
        entry = _announce(tables, entry, lines)
        tracking.promote(version)
        tracking.confirm(version, entry.id)
        _end_canary_of(tables, tracking, version, by, dagster_run)
        return entry


def rollback(tables: TableStore, tracking: Tracking, version: str | None = None, by: str = "", why: str = "") -> Entry:
    """Make an earlier champion the champion again. Gates are not asked: it had passed them, and this is an emergency.

    Args:
        tables: hold the log.
        tracking: the registry.
        version: an earlier champion; default the one that the present champion took over from.
        by: who asks for it.
        why: the reason, in their words.

    Returns:
        The line of the log.

    Raises:
        RegistryError: there is no such version, it never was champion, is champion already, cannot be loaded, reads
            other features than the contract describes, gives no usable answer, or another machine promotes or rolls
            back at this moment. Nothing has changed then.
    """
    with _alone(tracking.settings):
        lines = _settle(tables, tracking)
        log = took_effect(lines)
        before = _champion(tracking)
        if before is None:
            raise RegistryError("there is no champion to roll back from. Launch the job `retrain` to make one.")
        target = _before(log, before) if version is None else version
        model = tracking.version(target)
        if target == before:
            raise RegistryError(f"version {target} is the champion already. `churn history` lists the others.")
        former = sorted({str(entry.version) for entry in log if entry.version not in (None, before)}, key=_place)
        if target not in former:
            listed = f"Former champions: {', '.join(former)}." if former else "There is no former champion."
            raise RegistryError(f"version {target} never was champion, so nothing speaks for it. {listed}")
        tracking.require_answers(model)
        entry = _announce(tables, Entry(ROLLBACK, target, before, by, why, **_evidence(tracking, model)), lines)
        tracking.reinstate(target)
        tracking.confirm(target, entry.id)
        _end_canary_of(tables, tracking, target, by)
        return entry


def start_canary(
    tables: TableStore, tracking: Tracking, version: str | None, share: float, *, by: str = "", why: str = ""
) -> Entry:
    """Let a version that has passed every gate answer for a share of the customers, beside the champion.

    Args:
        tables: hold the log.
        tracking: the registry.
        version: its number; None: the challenger.
        share: of the customers, above 0 and below 1.
        by: who asks for it.
        why: the reason, in their words.

    Returns:
        The line of the log.

    Raises:
        RegistryError: the share is none; there is no champion or no such version; another canary answers; or the
            version is champion, has not passed every gate, or gives no usable answer. Nothing has changed then.
    """
    if not 0 < share < 1:
        raise RegistryError(f"a canary answers for a share between 0 and 1, such as 0.1, and not for {share:g}.")
    with _alone(tracking.settings):
        _settle(tables, tracking)
        before = _champion(tracking)
        if before is None:
            raise RegistryError("there is no champion beside which a canary could answer. Launch the job `retrain`.")
        if version is None:
            challenger = tracking.version_of(CHALLENGER)
            if challenger is None:
                raise RegistryError("there is no challenger. Launch the job `retrain` to make one.")
            version = str(challenger.version)
        model = tracking.version(version)
        if version == before:
            raise RegistryError(f"version {version} is the champion: it answers for everybody already.")
        running = tracking.version_of(CANARY)
        if running is not None and str(running.version) != version:
            raise RegistryError(f"version {running.version} is the canary. Stop it first: `churn canary stop`.")
        tracking.require_passed(version)
        tracking.require_answers(model)
        words = f"{share:.1%} of the customers" + (f": {why}" if why else "")
        entry = _append(tables, Entry(CANARY_STARTED, version, before, by, words, **_evidence(tracking, model)))
        tracking.start_canary(version, share)
        return entry


def stop_canary(tables: TableStore, tracking: Tracking, by: str = "", why: str = "") -> Entry:
    """Let the champion answer for everybody again.

    Returns:
        The line of the log.

    Raises:
        RegistryError: there is no canary.
    """
    with _alone(tracking.settings):
        running = tracking.version_of(CANARY)
        if running is None:
            raise RegistryError("there is no canary to stop.")
        version = str(running.version)
        entry = _append(tables, Entry(CANARY_STOPPED, version, _champion(tracking), by, why))
        tracking.stop_canary(version)
        return entry


def canary_started(tables: TableStore, version: str) -> Entry | None:
    """The line of the log by which a version was last made canary, or None."""
    lines = (line for line in reversed(entries(tables)) if line.event == CANARY_STARTED and line.version == version)
    return next(lines, None)


def _end_canary_of(
    tables: TableStore, tracking: Tracking, version: str, by: str, dagster_run: str | None = None
) -> None:
    """Take the title of a canary from a version that has become champion: it answers for everybody."""
    running = tracking.version_of(CANARY)
    if running is not None and str(running.version) == version:
        words = "it has become champion"
        _append(tables, Entry(CANARY_STOPPED, version, version, by, words, dagster_run))
        tracking.stop_canary(version)


def _place(version: str) -> tuple[int, str]:
    return (int(version) if version.isdigit() else 0, version)


def _champion(tracking: Tracking) -> str | None:
    found = tracking.version_of(CHAMPION)
    return None if found is None else str(found.version)


def _before(log: Sequence[Entry], champion: str) -> str:
    """The champion that another one took over from when it was promoted."""
    promoted = next((entry for entry in reversed(log) if entry.version == champion and entry.event != ROLLBACK), None)
    if promoted is None or promoted.previous is None:
        raise RegistryError(f"version {champion} is the first champion: there is none before it to roll back to.")
    return promoted.previous


def _evidence(tracking: Tracking, model: ModelVersion) -> dict[str, Any]:
    """What the log keeps of a version: the data that it was made of, the gates' verdicts and the run's metrics."""
    metrics = tracking.client.get_run(str(model.run_id)).data.metrics if model.run_id else {}
    made_of = provenance.recorded(model)
    return {
        "window": model.tags.get("window"),
        "training_set_version": made_of.get(provenance.TRAINING_SET),
        "test_roc_auc": float(model.tags["test_roc_auc"]) if "test_roc_auc" in model.tags else None,
        "data_versions": json.dumps(made_of),
        "evidence": json.dumps({"gates": tracking.said(model), "metrics": dict(sorted(metrics.items()))}),
    }


def _announce(tables: TableStore, entry: Entry, lines: Sequence[Entry]) -> Entry:
    """Write the line of an action that is about to move the alias; withdraw it where it is not the only new one.

    Args:
        tables: hold the log.
        entry: the line.
        lines: the log as it was when the action began.

    Raises:
        RegistryError: another machine has written a line meanwhile.
    """
    entry = _append(tables, entry, lines)
    # by number: a line from before there were ids has another one each time that it is read
    others = [line for line in entries(tables) if line.number >= entry.number and line.id != entry.id]
    if others:
        words = f"{others[0].by} on {others[0].host} acted at the same moment"
        _append(tables, Entry(DROPPED, entry.version, entry.previous, by=entry.by, why=words, about=entry.id))
        raise RegistryError(f"nothing was changed: {words}. Look at `churn history`, and try again in a minute.")
    return entry


def _append(tables: TableStore, entry: Entry, lines: Sequence[Entry] | None = None) -> Entry:
    written: dict[str, Any] = {name: getattr(entry, name) for name in _SCHEMA.names}
    written["number"] = max((line.number for line in (entries(tables) if lines is None else lines)), default=0) + 1
    tables.write(LOG, pa.Table.from_pylist([written], schema=_SCHEMA), keep=True)
    return Entry(**written)


def _settle(tables: TableStore, tracking: Tracking) -> list[Entry]:
    """Enter into the log what it does not know yet; returns all of its lines.

    Raises:
        RegistryError: another machine has announced an action less than a minute ago, and not done it yet.
    """
    champion = _champion(tracking)
    if champion is not None:
        _end_canary_of(tables, tracking, champion, by="the action after it")
    log = entries(tables)
    unsettled = _unsettled(log, tracking)
    if unsettled is None:
        return log
    announced = next((line for line in log if unsettled.event == DROPPED and line.id == unsettled.about), unsettled)
    if announced.host != unsettled.host and unsettled.promoted_at - announced.promoted_at < IN_FLIGHT:
        raise RegistryError(
            f"a {announced.event} to version {announced.version} by {announced.by} on {announced.host} is under way, "
            "or was cut short less than a minute ago. Nothing was changed; try again in a minute."
        )
    return [*log, _append(tables, unsettled, log)]


def _unsettled(log: Sequence[Entry], tracking: Tracking) -> Entry | None:
    """What the log does not know: that its last action never moved the alias, or that something else did."""
    champion = _champion(tracking)
    last = next(reversed(took_effect(log)), None)
    if champion == (None if last is None else last.version):
        return None
    if last is not None and last.event != OUTSIDE and champion == last.previous:
        confirmed = last.version is not None and tracking.confirmed(last.version) == last.id
        if not confirmed:
            words = "it was cut short before the alias moved"
            return Entry(DROPPED, last.version, last.previous, by="the action after it", why=words, about=last.id)
    before = None if last is None else last.version
    words = "the alias was moved by other means than churn, such as MLflow's own page"
    return Entry(OUTSIDE, champion, before, by="unknown", why=words)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One promotion or rollback at a time on this machine; a process that is killed lets go by that.

    What happens on several machines at once, `_announce` and `_settle` notice.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "promotion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""What sensors and schedules look at: which windows are due, and what the monitoring assets said of past ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from churn_platform.assets.common import Ledger, contents
from churn_platform.assets.feature_store import LOG as STORE_LOG
from churn_platform.automation.jobs import CYCLE, PREPARE
from churn_platform.contract import MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection, short_hash
from churn_platform.ml import inputs
from churn_platform.registered import CHALLENGER
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.sources import Source
from churn_platform.sources.base import changed
from churn_platform.windows import Window, windows
from churn_platform.windows import window as window_of

COMPUTED = ("customer_features", "feature_store", "churn_labels")  # what is computed from the validated tables


@dataclass(frozen=True)
class Look:
    """What a source says of itself: how far it is complete, and a digest of each window's rows, table by table."""

    watermark: datetime | None
    digests: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Work:
    """A run that is due. `assets` are those of the job that it is about, empty for all of them."""

    window: Window
    job: str
    reason: str
    assets: tuple[str, ...] = ()
    mark: str = ""  # tells it from a run of the same job on the same window for another cause


def look(contract: Contract, source: Source, thorough: bool = False) -> Look:
    """Look at a source; `thorough` asks a database for digests as well, which costs a query over its newest windows.

    Raises:
        SourceError: the source cannot be read.
    """
    with connection(contract.time.timezone) as con:
        watermark = source.watermark(con)
        if watermark is None:
            return Look(None, {})
        return Look(watermark, {name: source.digests(con, name, thorough) for name in contract.tables.items()})


def due(
    contract: Contract, seen: Look, tables: TableStore, has_champion: bool = True, anew: bool = False
) -> list[Work]:
    """What has to be run so that every window is what its source says now, oldest window first.

    A window is due when its data is complete at the source and its cycle is not: a cycle is complete when its last
    table is written, so a run that was killed half-way leaves its window due. The windows before the first scores, and
    those that land while there is no champion, are complete when prepared.

    A window is due again when rows of it came late or were corrected at the source, and when what its features or
    labels are computed from has changed; then only what depends on the change is run. What was scored and reported at
    the time stays as it was said.

    Args:
        contract: says which windows there are.
        seen: what the source says.
        tables: say what is done.
        has_champion: whether there is a model that could score.
        anew: count the windows as well that were computed under an earlier state of the contract.
    """
    if seen.watermark is None:
        return []
    known = list(windows(contract, seen.watermark))
    ledger = tables.ledger()
    prepared = set(tables.windows(STORE_LOG)) & set(tables.windows("churn_labels"))
    if anew:
        prepared -= set(outdated(contract, tables))
    unfinished = _unfinished(contract, tables, [window.key for window in known])
    made_of = inputs.features_made_of(contract, contents(contract, ledger), known)
    job = CYCLE if has_champion else PREPARE
    found = []
    for window in known:
        mark = short_hash(*(digests.get(window.key) for digests in seen.digests.values()))
        if window.key not in prepared:
            found.append(Work(window, job, f"window {window.key} has landed", mark=mark))
            continue
        late = _late(contract, ledger, seen, window)
        if late:
            changed = ", ".join(name.removeprefix("raw_") for name in late if name.startswith("raw_"))
            reason = f"{changed or 'rows'} of window {window.key} came late or were corrected"
            found.append(Work(window, job, reason, (*late, *COMPUTED), mark))
        elif _out_of_date(contract, ledger, made_of, window):
            reason = f"what window {window.key} is computed from has changed"
            found.append(Work(window, job, reason, COMPUTED, made_of[window.key]))
        elif has_champion and window.key in unfinished:
            found.append(Work(window, CYCLE, f"window {window.key} was not finished", mark=mark))
    return found


def _unfinished(contract: Contract, tables: TableStore, known: list[str]) -> set[str]:
    """The windows since the first scores (or the first list) that lack what follows from scores."""
    watched = set(tables.windows("drift_report")) & set(tables.windows("model_performance"))
    found = set()
    for first_of, done in (("churn_scores", watched), ("retention_list", set(tables.windows("retention_list")))):
        first = min(tables.windows(first_of), default=None)
        if first is not None and (first_of != "retention_list" or contract.value is not None):
            found |= {key for key in known if key >= first} - done
    return found


def _late(contract: Contract, ledger: Ledger, seen: Look, window: Window) -> list[str]:
    """The raw and validated tables of a window whose rows are others at the source than when they were read.

    A table that has not changed is not read again: today's customers must not enter a past snapshot.
    """
    found = []
    for name in contract.tables.items():
        raw, validated = (ledger.get(f"{stage}_{name}", {}).get(window.key) for stage in ("raw", "validated"))
        if raw is not None and changed(raw.made_of, seen.digests.get(name, {}).get(window.key, "")):
            found += [f"raw_{name}", f"validated_{name}"]
        elif raw is not None and raw.content and (validated is None or validated.made_of != raw.content):
            found.append(f"validated_{name}")  # a run that was killed in between
    return found


def _out_of_date(contract: Contract, ledger: Ledger, made_of: Mapping[str, str], window: Window) -> bool:
    """Whether a window's features or labels were computed from something else than what is there now.

    Of a window without a record nothing is known, so it stays as it is.
    """
    wanted = {
        "customer_features": made_of[window.key],
        "churn_labels": inputs.labels_made_of(contract, contents(contract, ledger), window),
    }
    for name, now in wanted.items():
        entry = ledger.get(name, {}).get(window.key)
        if entry is not None and entry.made_of and inputs.unstamped(entry.made_of) != now:
            return True
    return False


def not_online(tables: TableStore) -> str | None:
    """The newest window that is prepared, where the feature store has not brought it online; else None."""
    newest = max(tables.windows(STORE_LOG), default=None)
    if newest is None:
        return None
    with connection() as con:
        tables.read(con, STORE_LOG, [newest])
        return None if con.execute(f"SELECT bool_and(online) FROM {STORE_LOG}").fetchall()[0][0] else newest


def online_work(contract: Contract, key: str) -> Work:
    """The run that brings a window online."""
    return Work(window_of(contract, key), CYCLE, f"window {key} is not online yet", ("feature_store",), "online")


def outdated(contract: Contract, tables: TableStore) -> list[str]:
    """The windows that were computed when the contract described data, features or label otherwise than now."""
    if tables.version(STORE_LOG) is None:
        return []
    with connection() as con:
        tables.read(con, STORE_LOG)
        return [
            key
            for (key,) in con.execute(
                f"SELECT _window FROM {STORE_LOG} WHERE data_fingerprint IS DISTINCT FROM ? ORDER BY 1",
                [contract.data_fingerprint],
            ).fetchall()
        ]


def unscored(tables: TableStore) -> str | None:
    """The newest window that is prepared, where no window has been scored; else None.

    A first champion scores the window that it was trained as of; the windows after it are scored in their cycle.
    """
    if tables.windows("churn_scores"):
        return None
    return max(tables.windows(STORE_LOG), default=None)


def verdicts(instance: dg.DagsterInstance, asset: str, metadata: str, model: str) -> dict[str, bool | float]:
    """Window to the value of one metadata entry in its newest materialization; windows without it are left out.

    Only what was said about `model` counts: that a champion's predecessor had drifted away or fallen off is no reason
    to replace the champion.

    Every materialization is read, not the latest only: a sensor that looks once a minute must not miss the drift of
    one window because another was materialized a second later.
    """
    found: dict[str, bool | float] = {}
    for record in _materializations(instance, dg.AssetKey(asset)):
        materialization = record.asset_materialization
        if materialization is None or record.partition_key is None:
            continue
        found.pop(record.partition_key, None)
        about, entry = materialization.metadata.get("model_version"), materialization.metadata.get(metadata)
        value = entry.value if entry is not None else None
        if about is not None and about.value == model and isinstance(value, bool | int | float):
            found[record.partition_key] = value
    return found


def monitored(instance: dg.DagsterInstance, model: str) -> tuple[dict[str, bool], dict[str, float]]:
    """What monitoring says of a model: window to whether it drifted, and to how far performance fell."""
    drifted = verdicts(instance, "drift_report", "drifted", model)
    drops = verdicts(instance, "model_performance", "drop", model)
    return (
        {window: bool(value) for window, value in drifted.items()},
        {window: float(value) for window, value in drops.items()},
    )


def _materializations(instance: dg.DagsterInstance, asset: dg.AssetKey) -> Iterator[dg.EventLogRecord]:
    """All materializations of an asset, oldest first."""
    cursor: str | None = None
    while True:
        page = instance.fetch_materializations(asset, limit=500, cursor=cursor, ascending=True)
        yield from page.records
        if not page.has_more:
            return
        cursor = page.cursor


def retrained_windows(tracking: Tracking) -> list[str]:
    """The windows as of which models were trained, oldest first; one entry per model."""
    return sorted(version.tags["window"] for version in tracking.versions() if "window" in version.tags)


def lacking_labels(contract: Contract, tables: TableStore) -> str:
    """Why the labels that are mature do not suffice for a model yet; empty if they do."""
    if tables.version("churn_labels") is None:
        return "no window has been labelled yet"
    with connection() as con:
        tables.read(con, "churn_labels")
        observations = con.sql(f"SELECT DISTINCT {SNAPSHOT_TIME}, {MATURED_AT} FROM churn_labels").df()
    if observations.empty:
        return "no label is mature yet"
    from churn_platform.ml.splits import why_not

    return why_not(contract, observations)


def refused_already(contract: Contract, tables: TableStore, tracking: Tracking) -> str:
    """Why another candidate would be the last one over again: same contract, same labels; empty if it would not."""
    last = tracking.version_of(CHALLENGER)
    if last is None or last.tags["contract"] != contract.fingerprint:
        return ""
    if all(tracking.verdicts(last).values()):  # not judged yet, or a run that was killed before it promoted
        return ""
    with connection() as con:
        tables.read(con, "churn_labels")
        (newest,) = con.execute(f"SELECT max({MATURED_AT}) FROM churn_labels").fetchall()[0]
    if newest > datetime.fromisoformat(last.tags["labels_known_until"]):
        return ""
    return f"version {last.version} was not promoted, and no label has matured since it was trained"

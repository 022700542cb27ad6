"""What sensors and schedules look at: which windows are due, and what the monitoring assets said of past ones."""

from collections.abc import Iterator
from datetime import datetime

import dagster as dg

from churn_platform.assets.features import LOG as STORE_LOG
from churn_platform.contract import MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import CHALLENGER, Tracking
from churn_platform.sources import Source
from churn_platform.windows import Window, windows


def due(
    contract: Contract, source: Source, tables: TableStore, has_champion: bool = True, anew: bool = False
) -> list[Window]:
    """The windows whose data is complete at the source and whose cycle is not, oldest first.

    A cycle is complete when its last table is written, so a run that was killed half-way leaves its window due. The
    windows before the first scores, and those that land while there is no champion, are complete when prepared.

    Args:
        contract: says which windows there are.
        source: says how far the data is complete.
        tables: say what is done.
        has_champion: whether there is a model that could score.
        anew: count the windows as well that were computed under an earlier state of the contract.

    Raises:
        SourceError: the source cannot be read.
    """
    with connection(contract.time.timezone) as con:
        watermark = source.watermark(con)
    if watermark is None:
        return []
    prepared = set(tables.windows(STORE_LOG)) & set(tables.windows("churn_labels"))
    if anew:
        prepared -= set(outdated(contract, tables))
    watched = set(tables.windows("drift_report")) & set(tables.windows("model_performance"))
    first_scored = min(tables.windows("churn_scores"), default=None)
    return [
        window
        for window in windows(contract, watermark)
        if window.key not in prepared
        or (has_champion and first_scored is not None and window.key >= first_scored and window.key not in watched)
    ]


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

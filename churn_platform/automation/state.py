"""What sensors and schedules look at: which windows are due, and what the monitoring assets said of past ones."""

from collections.abc import Iterator

import dagster as dg

from churn_platform.assets.features import LOG as STORE_LOG
from churn_platform.contract import Contract
from churn_platform.engine import connection
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.sources import Source
from churn_platform.windows import Window, windows


def due(contract: Contract, source: Source, tables: TableStore) -> list[Window]:
    """The windows whose data is complete at the source and whose cycle is not, oldest first.

    A cycle is complete when its last table is written, so a run that was killed half-way leaves its window due. The
    windows before the first scores were only prepared, and are complete with that.

    Raises:
        SourceError: the source cannot be read.
    """
    with connection(contract.time.timezone) as con:
        watermark = source.watermark(con)
    if watermark is None:
        return []
    prepared = set(tables.windows(STORE_LOG)) & set(tables.windows("churn_labels"))
    watched = set(tables.windows("drift_report")) & set(tables.windows("model_performance"))
    first_scored = min(tables.windows("churn_scores"), default=None)
    return [
        window
        for window in windows(contract, watermark)
        if window.key not in prepared
        or (first_scored is not None and window.key >= first_scored and window.key not in watched)
    ]


def verdicts(instance: dg.DagsterInstance, asset: str, metadata: str) -> dict[str, bool | float]:
    """Window to the value of one metadata entry in its newest materialization; windows without it are left out.

    Every materialization is read, not the latest only: a sensor that looks once a minute must not miss the drift of
    one window because another was materialized a second later.
    """
    found: dict[str, bool | float] = {}
    for record in _materializations(instance, dg.AssetKey(asset)):
        materialization = record.asset_materialization
        entry = materialization.metadata.get(metadata) if materialization is not None else None
        if entry is not None and record.partition_key is not None and isinstance(entry.value, bool | int | float):
            found[record.partition_key] = entry.value
    return found


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


def enough_labels(contract: Contract, tables: TableStore) -> bool:
    """Whether the labels that are mature suffice for a first model."""
    if tables.version("churn_labels") is None:
        return False
    with connection() as con:
        tables.read(con, "churn_labels")
        times = con.sql("SELECT DISTINCT snapshot_time FROM churn_labels").df()["snapshot_time"]
    if contract.snapshots is not None and contract.snapshots.time is None:
        return len(times) > 0
    from churn_platform.ml.splits import window_keys

    return len(times) > 0 and window_keys(contract, times.dt.tz_convert("UTC")).nunique() >= contract.model.min_windows

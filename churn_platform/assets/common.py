"""What the assets share: partitions, and the metadata that every one of them shows."""

import base64
import math
import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg
import duckdb
from matplotlib.figure import Figure

from churn_platform.contract import Contract
from churn_platform.engine import identifier
from churn_platform.ml.features import AT_RISK
from churn_platform.ml.plots import png
from churn_platform.resources.reports import Kept
from churn_platform.resources.storage import Entry

# Every run that writes carries this tag; dagster.yaml lets one of them run at a time.
WRITES = {"churn/writes": "yes"}
# The assets of the data plane share a pool: a backfill runs that many of its windows side by side.
POOL = "data_plane"
SIDE_BY_SIDE = 2

Ledger = Mapping[str, Mapping[str, Entry]]


def partitions(contract: Contract) -> dg.TimeWindowPartitionsDefinition:
    """The windows of a contract as Dagster partitions: same keys, same bounds (`churn_platform.windows`)."""
    time = contract.time
    kinds: dict[str, Any] = {
        "daily": dg.DailyPartitionsDefinition,
        "weekly": dg.WeeklyPartitionsDefinition,
        "monthly": dg.MonthlyPartitionsDefinition,
    }
    options: dict[str, Any] = {"start_date": time.start.isoformat(), "timezone": time.timezone}
    if time.end is not None:
        options["end_date"] = time.end.isoformat()
    if time.cadence == "weekly":
        options["day_offset"] = (time.start.weekday() + 1) % 7
    definition: dg.TimeWindowPartitionsDefinition = kinds[time.cadence](**options)
    return definition


def history(contract: Contract) -> dg.TimeWindowPartitionMapping:
    """A window needs the windows before it, as far back as the longest feature or label looks."""
    days = max((feature.window_days or 0 for feature in contract.feature_definitions.values()), default=0)
    if contract.label is not None:
        label = contract.label
        days = max(days, label.active_within_days + label.lead_days + label.horizon_days)
    length = {"daily": 1, "weekly": 7, "monthly": 28}[contract.time.cadence]
    with warnings.catch_warnings():
        # beta in Dagster; without it the first windows, which have fewer before them, could not be materialized
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.TimeWindowPartitionMapping(
            start_offset=-math.ceil(days / length), end_offset=0, allow_nonexistent_upstream_partitions=True
        )


def contents(contract: Contract, ledger: Ledger) -> dict[str, dict[str, str]]:
    """Table to window to the digest of its validated rows."""
    return {
        name: {key: entry.content for key, entry in ledger.get(f"validated_{name}", {}).items()}
        for name in contract.tables.items()
    }


def linked(report: Kept) -> dict[str, dg.MetadataValue[Any]]:
    """A report as metadata: a link where a server shows it, and where it is."""
    link = {} if report.url is None else {"report": dg.MetadataValue.url(report.url)}
    return {**link, "report_path": dg.MetadataValue.path(report.path)}


def require_window(key: str, there: list[str], table: str) -> None:
    """Refuse to go on without a window of a table: an empty result would look like a window without customers.

    Raises:
        dagster.Failure: the table lacks the window.
    """
    require_windows([key], there, table)


def require_windows(wanted: list[str], there: list[str], table: str) -> None:
    """Refuse to go on without some windows of a table: what is computed without one would be silently wrong.

    Raises:
        dagster.Failure: the table lacks some of them; all are named.
    """
    missing = sorted(set(wanted) - set(there))
    if missing:
        windows = f"the window {missing[0]}" if len(missing) == 1 else f"the windows {', '.join(missing)}"
        raise dg.Failure(
            description=f"{table} lacks {windows}. Materialize {table} for {'it' if len(missing) == 1 else 'them'} "
            "first.",
            allow_retries=False,
        )


def column_schema(columns: Mapping[str, tuple[str, str]]) -> dg.TableSchema:
    """A table schema from name to (type, description)."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name, kind, description or None) for name, (kind, description) in columns.items()]
    )


def feature_columns(contract: Contract) -> dict[str, tuple[str, str]]:
    """Name to type and meaning of the columns of the features table."""
    found = {
        contract.customer.name: (contract.customer.type, "the customer"),
        "snapshot_time": ("timestamp", "the instant at which the row is true; it looks at rows before it only"),
    }
    for name in contract.feature_names:
        found[name] = ("string" if contract.is_categorical(name) else "float", contract.describe_feature(name))
    found[AT_RISK] = ("boolean", "bought recently enough to be scored")
    return found


def share_known(con: duckdb.DuckDBPyConnection, view: str, columns: list[str]) -> dict[str, float]:
    """The share of a view's rows in which each column has a value."""
    counts = ", ".join(f"coalesce(count({identifier(column)}) / nullif(count(*), 0), 0)" for column in columns)
    return dict(zip(columns, con.execute(f"SELECT {counts} FROM {identifier(view)}").fetchall()[0], strict=True))


def plot(figure: Figure) -> dg.MetadataValue:
    """A figure as metadata that the asset catalogue shows."""
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{base64.b64encode(png(figure, dpi=90)).decode()})")


def advice(passed: bool, words: str, remedy: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of a check: what was found and, where it failed, what to do."""
    return {"verdict": words, **({} if passed else {"what_to_do": remedy}), **(extra or {})}

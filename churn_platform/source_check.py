"""What `churn contract check` finds out at the source: whether the rows are what the contract says, before any of them
is processed. It looks as the assets will, through the same functions, at the first window and at the newest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.contract import MATURED_AT, SNAPSHOT_TIME, days_after
from churn_platform.engine import connection
from churn_platform.ml import ingestion, inputs, splits, validation
from churn_platform.ml.masking import install_key
from churn_platform.sources import SourceError, open_source
from churn_platform.windows import windows

if TYPE_CHECKING:
    import duckdb

    from churn_platform.contract import Contract
    from churn_platform.ml.validation import Finding
    from churn_platform.settings import Settings
    from churn_platform.sources import Source
    from churn_platform.windows import Window


def look(contract: Contract, settings: Settings) -> str:
    """What the source holds, in words.

    Raises:
        SourceError: it cannot be read, or a window of it would be refused; all that was found is in the message.
    """
    source = open_source(contract, settings, remember=False)
    with connection(contract.time.timezone) as con:
        watermark = source.watermark(con)
        if watermark is None:
            hint = " (`churn land --history` lands some)." if contract.is_demonstration else "."
            return f"The source holds no data yet{hint}"
        complete = f"complete until {watermark.astimezone(contract.zone):%Y-%m-%d %H:%M %Z}"
        found = list(windows(contract, watermark))
        if not found:
            raise SourceError(
                f"the source's data is {complete}, and no {contract.time.cadence} window from {contract.time.start} on "
                "is over by then. Set time.start before the first row of your data. A window counts as over when rows "
                "reach into its last day, or when source.complete_until says so."
            )
        install_key(con, b"nothing is kept of what is looked at")
        lines, refused = [f"The source's data is {complete}: {_several(found, contract)}."], []
        for name in contract.tables.items():
            for window in _looked_at(contract, name, found):
                said, findings = _table(con, contract, source, name, window)
                lines.append(said)
                refused += [f"  {name}, {window.key}: {bad.words}\n    -> {bad.remedy}" for bad in findings]
    if refused:
        raise SourceError("\n".join([*lines, "This data would be refused:", *refused]))
    lacking = _lacking(contract, found)
    return "\n".join([*lines, "The source fits the contract.", *([lacking] if lacking else [])])


def _several(found: list[Window], contract: Contract) -> str:
    if len(found) == 1:
        return f"one {contract.time.cadence} window, {found[0].key}"
    return f"{len(found)} {contract.time.cadence} windows, {found[0].key} to {found[-1].key}"


def _looked_at(contract: Contract, name: str, found: list[Window]) -> list[Window]:
    """The first window, with which rows of unreadable time land, and the newest; of a table without time any is all."""
    if contract.tables.items()[name].time_column is None or len(found) == 1:
        return found[-1:]
    return [found[0], found[-1]]


def _table(
    con: duckdb.DuckDBPyConnection, contract: Contract, source: Source, name: str, window: Window
) -> tuple[str, list[Finding]]:
    """A table's rows of a window: in words, and what they would be refused for."""
    rows = ingestion.typed_rows(con, contract, name, source.rows(con, name, window), window)
    rows.create_view("_looked_at", replace=True)
    divided = validation.split(con, contract, name, "_looked_at")
    findings = validation.findings(con, contract, name, "_looked_at", divided)
    said = f"  {name}, {window.key}: {divided.rows:,} rows, {divided.bad:,} of them bad"
    worst = list(divided.reasons.items())[:3]
    if worst:
        said += f" ({'; '.join(f'{count:,} x {reason}' for reason, count in worst)})"
    return said, [finding for finding in findings if not finding.passed]


def _lacking(contract: Contract, found: list[Window]) -> str:
    """Why these windows cannot give a model yet, where that is known beforehand."""
    if contract.label is None:
        return ""
    import pandas as pd

    wait = contract.label.lead_days + contract.label.horizon_days
    observed = [time for window in found for time in inputs.matured_observations(contract, window)]
    matured = [days_after(time, wait, contract.zone) for time in observed]
    frame = pd.DataFrame(
        {SNAPSHOT_TIME: pd.to_datetime(observed, utc=True), MATURED_AT: pd.to_datetime(matured, utc=True)}
    )
    why = f"no window is labelled before {contract.label.warmup_days + wait} days (warmup, lead and horizon) are over."
    if not frame.empty:
        why = splits.why_not(contract, frame)
    return f"It is too short for a first model, though: {why}" if why else ""

"""How a window compares with those before it: volume, customers in common, repeated rows, and silence at its end.

An export that is whole in every row can still be wrong as a whole: half of it is missing, it came twice, it ends in
the middle of the month, it is another shop's. Only the windows before can tell. What is kept of each window is five
numbers, its profile; a window is compared with earlier ones only, so judging it again gives the same verdict.

Bounds that the contract states hold from the first window on. The others are derived from the earlier windows
themselves, and are wide, so that a season or a holiday does not stop a platform: a window is suspicious where it lies
well outside all that was seen. Until there are enough earlier windows, nothing is derived and the words say so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import TYPE_CHECKING

from churn_platform.contract import as_utc
from churn_platform.engine import identifier
from churn_platform.ml.validation import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb

    from churn_platform.contract import Contract, Table
    from churn_platform.ml.validation import Split
    from churn_platform.windows import Window

LOOKED_AT = 1_000_000
ENOUGH = 4  # earlier windows before anything is derived from them
FEW_ROWS = 50  # windows with fewer rows than this say nothing about what is usual
RECENT = 4  # windows that say what the volume is at present
MIN_VOLUME = {"daily": 0.5, "weekly": 0.6, "monthly": 0.6}  # of the smallest recent window; a holiday halves a day
MAX_VOLUME = 3.0  # times the largest of them
ALL_REPEATED = 0.9  # an export that came twice has this share of repeated rows, whatever is usual
_NEIGHBOURS = {"daily": 28, "weekly": 4, "monthly": 1}  # about a month, in which customers come back
_A_YEAR = {"daily": 52, "weekly": 52, "monthly": 12}  # windows that show every season; of days, one of each week
_SILENCE = {"daily": 0.5, "weekly": 4.0, "monthly": 10.0}  # days; shops close between Christmas and New Year


@dataclass(frozen=True)
class Profile:
    """What is remembered of the good rows of a window."""

    rows: int
    customers: int
    overlap: float | None  # with the windows right before; None where there are none
    repeated: float  # the share of rows that are equal in every column to another row
    silence_days: float | None  # from the newest row to the end of the window; None without times or rows


def neighbours(contract: Contract, key: str, there: Iterable[str]) -> list[str]:
    """The windows right before one, whose customers are expected to be met again."""
    return sorted(window for window in there if window < key)[-_NEIGHBOURS[contract.time.cadence] :]


def compared(contract: Contract, key: str, there: Iterable[str]) -> list[str]:
    """The earlier windows that a window is compared with: of days those of the same day of the week."""
    cadence = contract.time.cadence
    earlier = sorted(window for window in there if window < key)
    if cadence == "daily":
        weekday = date.fromisoformat(key).weekday()
        earlier = [window for window in earlier if date.fromisoformat(window).weekday() == weekday]
    return earlier[-_A_YEAR[cadence] :]


def profile(
    con: duckdb.DuckDBPyConnection,
    contract: Contract,
    table_name: str,
    divided: Split,
    *,
    window: Window,
    before: str | None,
) -> Profile:
    """The profile of a window's good rows; the view `before` holds those of its neighbours, where it has any.

    Overlap is the overlap coefficient: customers in common, as a share of the smaller of both sets. So neither growth
    nor shrinking moves it. Of more than a million rows one row in so many is looked at, and one customer; they are
    chosen by their hash, so that equal rows, and all rows of a customer, are chosen together.
    """
    table = contract.tables.items()[table_name]
    divided.good.create_view("_good", replace=True)
    rows = divided.rows - divided.bad
    columns, customer = ", ".join(map(identifier, divided.good.columns)), identifier(table.customer)
    time = "NULL" if table.time_column is None else identifier(table.time_column)
    part = max(1, rows // LOOKED_AT)
    # rows are told apart by 64 bits of hash: among a million, the chance of even one false twin is 1 in 40 million
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _hashes AS SELECT hash({columns}) AS h, hash({customer}) AS c, {time} AS t "
        f"FROM _good WHERE h % {part} = 0 OR c % {part} = 0"
    )
    repeated = con.execute(
        "SELECT coalesce(sum(n) FILTER (n > 1) / sum(n), 0) "
        f"FROM (SELECT count(*) AS n FROM _hashes WHERE h % {part} = 0 GROUP BY h)"
    ).fetchall()[0][0]
    con.execute(f"CREATE OR REPLACE TEMP TABLE _customers AS SELECT DISTINCT c FROM _hashes WHERE c % {part} = 0")
    customers = con.execute("SELECT count(*) FROM _customers").fetchall()[0][0]
    overlap = None
    if before is not None:
        known, common = con.execute(
            "SELECT count(*), count(*) FILTER (c IN (FROM _customers)) "
            f"FROM (SELECT DISTINCT hash({customer}) AS c FROM {identifier(before)} WHERE c % {part} = 0)"
        ).fetchall()[0]
        overlap = common / min(known, customers) if known and customers else None
    (newest,) = con.execute("SELECT max(t) FROM _hashes").fetchall()[0]
    silence = None if newest is None else (window.end - as_utc(newest, contract.zone)).total_seconds() / 86_400
    return Profile(rows, customers * part, overlap, float(repeated), silence)


def as_rows(con: duckdb.DuckDBPyConnection, found: Profile) -> duckdb.DuckDBPyRelation:
    """A profile as one row to be stored."""
    kinds = {"rows": "BIGINT", "customers": "BIGINT"}
    values = ", ".join(f"CAST(? AS {kinds.get(name, 'DOUBLE')}) AS {identifier(name)}" for name in asdict(found))
    con.execute(f"CREATE OR REPLACE TEMP TABLE _profile AS SELECT {values}", list(asdict(found).values()))
    return con.sql("FROM _profile")


def from_rows(con: duckdb.DuckDBPyConnection, view: str) -> dict[str, Profile]:
    """Window to profile, of a view of stored profiles."""
    columns = ", ".join(identifier(field.name) for field in fields(Profile))
    found = con.execute(f"SELECT _window, {columns} FROM {identifier(view)}").fetchall()
    return {window: Profile(*values) for window, *values in found}


def findings(contract: Contract, table_name: str, window: str, now: Profile, past: dict[str, Profile]) -> list[Finding]:
    """The verdicts on a window beside those before it; each of them refuses it when it fails.

    Args:
        contract: the contract.
        table_name: the table.
        window: the window's key.
        now: its profile.
        past: the profiles of other windows; those that are not earlier do not count.
    """
    table = contract.tables.items()[table_name]
    earlier = [past[key] for key in compared(contract, window, past)]
    usual = [found for found in earlier if found.rows >= FEW_ROWS]
    found = [
        _volume(contract, table_name, table, now, usual),
        _overlap(table_name, table, now, usual),
        _repetition(table_name, table, now, usual),
    ]
    if table.time_column is not None:
        found.append(_silence(contract, table_name, table, now, usual))
    return found


def names(table: Table) -> dict[str, str]:
    """The names of the findings that a table has, and what each of them says when it passes."""
    found = {
        "volume_is_usual": "The window has about as many rows as those before it.",
        "customers_are_known": "The window shares customers with those right before it.",
        "rows_are_not_repeated": "Rows that are equal in every column are as rare as in the windows before.",
    }
    if table.time_column is not None:
        found["reaches_the_windows_end"] = "No long time without a row lies before the window's end."
    return found


def _too_few(usual: list[Profile], needed: int) -> str:
    return f"not compared: {len(usual)} earlier windows with {FEW_ROWS} rows or more, {needed} are needed"


def _volume(contract: Contract, name: str, table: Table, now: Profile, usual: list[Profile]) -> Finding:
    """Compared with the recent windows; a fall as deep as one of the past year's is a season, not a fault."""
    check, said = "volume_is_usual", {"rows": now.rows}
    usual_least = MIN_VOLUME[contract.time.cadence] if table.is_steady else 0.0
    least = usual_least if table.min_volume is None else table.min_volume
    most = table.max_volume if table.max_volume is not None else MAX_VOLUME if table.is_steady else None
    needed = 1 if table.is_list else ENOUGH
    if least == 0 and most is None:
        return Finding(check, True, f"{now.rows:,} rows; not compared: {name} comes in bursts", "", said)
    if len(usual) < needed:
        return Finding(check, True, f"{now.rows:,} rows; {_too_few(usual, needed)}", "", said)
    volumes = [past.rows for past in usual]
    recent = volumes[-RECENT:]
    if table.min_volume is None:
        falls = [volumes[n] / min(volumes[n - RECENT : n]) for n in range(RECENT, len(volumes))]
        least = min([least, *(0.9 * fall for fall in falls)])
    low, high = least * min(recent), None if most is None else most * max(recent)
    empty = now.rows == 0 and table.min_rows == 0  # the contract says that a window may be empty
    passed = empty or (now.rows >= low and (high is None or now.rows <= high))
    words = f"{now.rows:,} rows; the {len(recent)} windows before had {min(recent):,} to {max(recent):,}, so "
    words += f"{low:,.0f} or more" if high is None else f"{low:,.0f} to {high:,.0f}"
    what, change = "whole: parts of it may be missing", "lower tables.{}.min_volume"
    if now.rows >= low:
        what, change = "not doubled", "raise tables.{}.max_volume"
    return Finding(
        check,
        passed,
        words + " are expected",
        f"Check that the export of this window is {what}. If so many rows are right, {change.format(name)} in "
        "contract.yaml, then play or materialize this window again.",
        said | {"smallest_before": min(recent), "largest_before": max(recent)},
    )


def _overlap(name: str, table: Table, now: Profile, usual: list[Profile]) -> Finding:
    check = "customers_are_known"
    shares = [past.overlap for past in usual if past.overlap is not None]
    bound = table.min_overlap
    if bound is None and table.is_list:
        bound = 0.5  # people do not vanish from a list of customers
    elif bound is None and table.is_steady and len(usual) >= ENOUGH <= len(shares) + 1:  # the very first has none
        bound = min(shares) / 2
    if now.overlap is None:
        return Finding(check, True, "not compared: no customers in the windows right before it")
    said: dict[str, object] = {"overlap": now.overlap}
    words = f"{now.overlap:.1%} of the customers are in common with the windows right before"
    if bound is None:
        why = _too_few(usual, ENOUGH) if table.is_steady else f"not compared: {name} brings new customers"
        return Finding(check, True, f"{words}; {why}", "", said)
    # of a handful of customers none may come back, and nothing is wrong
    passed = now.overlap >= bound or (table.min_overlap is None and bound * now.customers < 10)
    return Finding(
        check,
        passed,
        f"{words}, at least {bound:.1%} are expected",
        "Check that the export is of the same business, and writes customers as before (leading zeros, another key for "
        f"hashing). If other people are right, set tables.{name}.min_overlap in contract.yaml to what is usual, then "
        "play or materialize this window again.",
        said,
    )


def _repetition(name: str, table: Table, now: Profile, usual: list[Profile]) -> Finding:
    bound = table.max_repeated
    if bound is None:
        bound = ALL_REPEATED
        if len(usual) >= ENOUGH:
            bound = min(bound, 1.5 * max(past.repeated for past in usual) + 0.02)
    few = table.max_repeated is None and now.rows < FEW_ROWS
    return Finding(
        "rows_are_not_repeated",
        few or now.repeated <= bound,
        f"{now.repeated:.1%} of the rows are equal in every column to another row, at most {bound:.1%} may be",
        "Check that the export, or a part of it, did not come twice (a file that was copied, a job that ran again). "
        f"Where equal rows are right, raise tables.{name}.max_repeated in contract.yaml; where columns name a row, "
        f"list them under tables.{name}.unique, and copies are quarantined one by one.",
        {"repeated": now.repeated},
    )


def _silence(contract: Contract, name: str, table: Table, now: Profile, usual: list[Profile]) -> Finding:
    check = "reaches_the_windows_end"
    if now.silence_days is None:
        return Finding(check, True, "not compared: the window has no rows")
    said: dict[str, object] = {"silence_days": now.silence_days}
    words = f"the newest row lies {now.silence_days:.1f} days before the window's end"
    bound = table.max_silence_days
    if bound is None:
        seen = [past.silence_days for past in usual if past.silence_days is not None]
        if not table.is_steady or len(seen) < ENOUGH:
            why = _too_few(usual, ENOUGH) if table.is_steady else f"not compared: {name} comes in bursts"
            return Finding(check, True, f"{words}; {why}", "", said)
        bound = max(_SILENCE[contract.time.cadence], 1.5 * max(seen))
    return Finding(
        check,
        now.silence_days <= bound,
        f"{words}, at most {bound:.1f} days are expected",
        "Check that the export of this window was made after its end, and is whole. If nothing happened in that time, "
        f"set tables.{name}.max_silence_days in contract.yaml, then play or materialize this window again.",
        said,
    )

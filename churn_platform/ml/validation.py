"""Validation: which rows are good, which go to quarantine and why, and whether the window as a whole may pass.

The split runs in SQL on any number of rows. The expectations (`ml.expectations`) judge the same rules, from the same
home (`ml.rules`); how the window compares with those before it is judged in `ml.comparison`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from churn_platform.contract import as_utc, given, label_value
from churn_platform.engine import identifier, literal
from churn_platform.ml.rules import ISSUES, LARGEST_SUMMED, REASON, RowRule, key_of, row_rules, summed_columns
from churn_platform.sources.base import ORIGIN

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from churn_platform.contract import Contract, Table
    from churn_platform.ml.expectations import Verdict
    from churn_platform.windows import Window


OUTSIDE = "lies outside the history that the contract describes"


@dataclass(frozen=True)
class Finding:
    """The verdict on one property of a window's rows."""

    name: str
    passed: bool
    words: str
    remedy: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """A window's rows, divided. `good` and `quarantined` are relations; `reasons` counts rows by reason."""

    good: duckdb.DuckDBPyRelation
    quarantined: duckdb.DuckDBPyRelation
    rows: int
    bad: int
    reasons: dict[str, int]


def late_since(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, raw: str, window: Window
) -> datetime | None:
    """The earliest time of the rows of the view `raw` that came late: those of before the window in which they arrived.

    None where there are none, or where no key tells a row that came once more from another.
    """
    table = contract.tables.items()[table_name]
    if table.arrived_column is None or not key_of(contract, table_name):
        return None
    inside = f"{_late(table, window.start)} AND {_inside(contract, str(table.time_column))}"
    (earliest,) = con.execute(
        f"SELECT min({identifier(str(table.time_column))}) FROM {identifier(raw)} WHERE {inside}"
    ).fetchall()[0]
    return None if earliest is None else as_utc(earliest, contract.zone)


def _late(table: Table, start: datetime) -> str:
    return f"({identifier(str(table.time_column))} < TIMESTAMPTZ {literal(start.isoformat())}) IS TRUE"


def _mark_repeated(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, raw: str, earlier: tuple[str, datetime]
) -> str:
    """A view like `raw` that says in `_repeated` which late rows have a key that an earlier window has already."""
    view, start = earlier
    table, by = contract.tables.items()[table_name], ", ".join(map(identifier, key_of(contract, table_name)))
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _known AS SELECT DISTINCT {by}, true AS _repeated FROM {identifier(view)} "
        f"SEMI JOIN (SELECT {by} FROM {identifier(raw)} WHERE {_late(table, start)}) USING ({by})"
    )
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW _marked AS "
        f"SELECT * REPLACE ({_late(table, start)} AND coalesce(_repeated, false) AS _repeated) "
        f"FROM {identifier(raw)} LEFT JOIN _known USING ({by})"
    )
    return "_marked"


def split(
    con: duckdb.DuckDBPyConnection,
    contract: Contract,
    table_name: str,
    raw: str,
    earlier: tuple[str, datetime] | None = None,
) -> Split:
    """Divide the rows of the view `raw` into good rows and quarantined ones with their reasons.

    Only what is bad is put aside, in a temporary table; the good rows are the view's own with a filter over them, so
    that any number of them is read as a stream. Of rows that share a key that may appear once only, the first (in the
    order of all columns) of those with nothing else against them is good; which of them is true cannot be known, and
    the choice must be the same at every run.

    Args:
        con: the connection.
        contract: the rules.
        table_name: the table.
        raw: its typed rows of one window.
        earlier: where rows came late (`late_since`), a view of the good rows of the windows before, as far back as the
            earliest of them, and the start of the window. A late row whose key is there came once more, and is bad.
    """
    table = contract.tables.items()[table_name]
    faults = _faults(contract, table_name)
    if earlier is not None:
        raw = _mark_repeated(con, contract, table_name, raw, earlier)
        words = literal(f"an earlier window has a row with the same {', '.join(key_of(contract, table_name))}")
        faults.append(("NOT _repeated", f"CASE WHEN _repeated THEN {words} END"))
    # as one expression: taken apart and pushed down into the reader, the rules are slower
    fine = f"CASE WHEN {' AND '.join(f'({good})' for good, _ in faults)} THEN true ELSE false END"
    reasons = ", ".join(reason for _, reason in faults)
    columns = ", ".join(map(identifier, table.kept))
    key = key_of(contract, table_name)
    twins = bool(key) and _find_duplicates(con, table, raw, key, fine)
    alone = identifier(raw)
    if twins:
        alone += f" ANTI JOIN _twice USING ({', '.join(map(identifier, key))})"
    good = f"SELECT {columns} FROM {alone} WHERE {fine}"
    quarantined = f"SELECT {columns}, {ORIGIN}, concat_ws('; ', {reasons}) AS {REASON} FROM {alone} WHERE NOT {fine}"
    if twins:
        words = literal(f"duplicate of another row with the same {', '.join(key)}")
        good += f" UNION ALL SELECT {columns} FROM _duplicates WHERE _good AND _place = 1"
        quarantined += (
            f" UNION ALL SELECT {columns}, {ORIGIN}, "
            f"concat_ws('; ', {reasons}, CASE WHEN _place > 1 THEN {words} END) AS {REASON} "
            "FROM _duplicates WHERE NOT _good OR _place > 1"
        )
    con.execute(f"CREATE OR REPLACE TEMP TABLE _quarantined AS {quarantined}")
    (bad,) = con.execute("SELECT count(*) FROM _quarantined").fetchall()[0]
    return Split(
        good=con.sql(good if bad else f"SELECT {columns} FROM {identifier(raw)}"),
        quarantined=con.sql("SELECT * FROM _quarantined"),
        rows=con.execute(f"SELECT count(*) FROM {identifier(raw)}").fetchall()[0][0],
        bad=bad,
        reasons=count_reasons(con, "_quarantined"),
    )


def count_reasons(con: duckdb.DuckDBPyConnection, view: str) -> dict[str, int]:
    """How many quarantined rows of a view have each reason; a row may have several. No value is quoted."""
    counted = con.execute(
        f"SELECT regexp_replace(reason, chr(39) || '.*' || chr(39), 'a value'), count(*) FROM "
        f"(SELECT unnest(string_split({REASON}, '; ')) AS reason FROM {identifier(view)}) GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return dict(counted)


def _find_duplicates(con: duckdb.DuckDBPyConnection, table: Table, raw: str, key: list[str], fine: str) -> bool:
    """Put aside the rows whose whole key stands there twice, in the order in which the first of them is kept.

    Most tables have none. They are found by a grouping of the key alone, and nothing but they is sorted.
    """
    by = ", ".join(map(identifier, key))
    whole = " AND ".join(f"{identifier(column)} IS NOT NULL" for column in key)
    order = ", ".join([f"NOT {fine}", *map(identifier, table.kept), ORIGIN, ISSUES])
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _twice AS SELECT {by} FROM {identifier(raw)} WHERE {whole} "
        f"GROUP BY {by} HAVING count(*) > 1"
    )
    if not con.execute("SELECT 1 FROM _twice LIMIT 1").fetchall():
        return False
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _duplicates AS SELECT *, {fine} AS _good, "
        f"row_number() OVER (PARTITION BY {by} ORDER BY {order}) AS _place "
        f"FROM {identifier(raw)} SEMI JOIN _twice USING ({by})"
    )
    return True


def _faults(contract: Contract, table_name: str) -> list[tuple[str, str]]:
    """All that can be wrong with a row by itself: SQL that is true (never NULL) for a good row, and SQL that gives
    the reason in words for a bad one."""
    table = contract.tables.items()[table_name]
    found = [(f"{ISSUES} IS NULL", ISSUES)]
    for name in summed_columns(contract, table_name):
        fits = f"(abs({identifier(name)}) < {LARGEST_SUMMED}) IS NOT FALSE"
        found.append((fits, f"CASE WHEN NOT ({fits}) THEN {literal(f'{name} is too large to be summed exactly')} END"))
    for rule in row_rules(table):
        broken = f"NOT ({rule.good}) AND {_unexplained(rule)}"
        found.append((rule.good, f"CASE WHEN {broken} THEN {literal(rule.reason)} END"))
    if table.time_column is not None:
        inside = _inside(contract, table.time_column)
        found.append((inside, f"CASE WHEN NOT ({inside}) THEN {literal(f'{table.time_column} {OUTSIDE}')} END"))
    label = contract.snapshots.label if contract.snapshots is not None else None
    if label is not None and label.negative is not None:
        spec = table.columns[label.column]
        listed = ", ".join(literal(label_value(spec, value)) for value in (label.positive, label.negative))
        known = f"({identifier(label.column)} IN ({listed})) IS NOT FALSE"
        found.append((known, f"CASE WHEN NOT ({known}) THEN {literal(label.column + ' is neither label')} END"))
    return found


def _unexplained(rule: RowRule) -> str:
    """A value that has the wrong type is NULL by now; that it is 'missing' as well would only confuse."""
    return f"({ISSUES} IS NULL OR NOT regexp_matches({ISSUES}, {literal(f'(^|; ){rule.column}: ')}))"


def _inside(contract: Contract, column: str) -> str:
    """SQL that is true for a time within the history, or none at all."""
    # one instant for all statements of a split: no row may be good in one of them and bad in another
    end = datetime.now(UTC) + timedelta(days=1)
    if contract.time.end is not None:
        end = min(end, as_utc(contract.time.end, contract.zone))
    start = as_utc(contract.time.start, contract.zone)
    value, first, after = identifier(column), literal(start.isoformat()), literal(end.isoformat())
    return f"({value} >= TIMESTAMPTZ {first} AND {value} < TIMESTAMPTZ {after}) IS NOT FALSE"


def table_findings(contract: Contract, table_name: str, divided: Split) -> list[Finding]:
    """The verdicts on the window as a whole; each of them refuses it when it fails."""
    table = contract.tables.items()[table_name]
    good = divided.rows - divided.bad
    share = divided.bad / divided.rows if divided.rows else 0.0
    reasons = list(divided.reasons.items())[:5]
    worst = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
    few = f"If so few rows are right, lower tables.{table_name}.min_rows in contract.yaml."
    if not divided.rows:
        few = "If the history begins later, move time.start; where a window may be empty, set min_rows: 0."
    hints = _hints([reason for reason, _ in reasons])
    most = f" and at most {table.max_rows:,}" if table.max_rows is not None else ""
    if table.max_rows is not None and good > table.max_rows:
        few = f"If so many rows are right, raise tables.{table_name}.max_rows in contract.yaml."
    return [
        Finding(
            "has_enough_rows",
            good >= table.min_rows and (table.max_rows is None or good <= table.max_rows),
            f"{good:,} good rows, at least {table.min_rows:,}{most} are needed",
            f"Check that the export of this window is whole. {few}",
            {"good_rows": good, "min_rows": table.min_rows},
        ),
        Finding(
            "bad_rows_are_few",
            share <= table.max_quarantined,
            f"{divided.bad:,} of {divided.rows:,} rows ({share:.2%}) are bad, "
            f"at most {table.max_quarantined:.2%} may be" + (f": {worst}" if worst else ""),
            f"Correct the source, or what contract.yaml says of tables.{table_name}{hints}; then play or "
            f"materialize this window again. Bad rows stand in the table quarantine_{table_name} with their reasons.",
            {"bad_rows": divided.bad, "share": share, **({"worst": worst} if worst else {})},
        ),
    ]


def findings(
    con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, raw: str, divided: Split
) -> list[Finding]:
    """All verdicts on a window that its own rows give, in the view `raw` and as `split` divided them."""
    found = table_findings(contract, table_name, divided)
    if table_name == "snapshots":
        found.append(label_finding(con, contract, raw))
    return found


_HINTS = {
    "is missing": "`nullable: true` allows gaps",
    OUTSIDE: "time.start and time.end bound the history",
    "an earlier window has": "a late row must have a key of its own, so remove the copies or correct `unique`",
    "duplicate of": "one row a key is right, so remove the copies or correct `unique`",
    "not a date": "`format` says how a date is written",
    "number": "`type` and `decimal` say how a number is written",
    "true or false": "`type: string` takes any word",
    "neither label": "label.positive and label.negative have to stand as the column has them",
    "not one of the allowed": "`allowed` lists the values",
    "is below": "`min` and `max` bound the values",
    "is above": "`min` and `max` bound the values",
    "pattern": "`pattern` describes the values",
}


def _hints(reasons: list[str]) -> str:
    """What in a contract may be wrong, where rows are bad for these reasons."""
    found = dict.fromkeys(hint for sign, hint in _HINTS.items() if any(sign in reason for reason in reasons))
    return f" ({'; '.join(found)})" if found else ""


FEW_LABELLED = 10  # rows: that fewer are all of one kind may be chance


def label_finding(con: duckdb.DuckDBPyConnection, contract: Contract, raw: str) -> Finding:
    """Whether the label column of a snapshots table has both kinds of customers, and what it holds if not."""
    spec = given(contract.snapshots).label
    column = given(contract.snapshots).columns[spec.column]
    counted = con.execute(
        f"SELECT {identifier(spec.column)} AS value, count(*) FROM {identifier(raw)} WHERE value IS NOT NULL "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    rows = sum(count for _, count in counted)
    churned = sum(count for value, count in counted if value == label_value(column, spec.positive))
    there = ", ".join(f"{value!r} ({count:,} rows)" for value, count in counted[:5]) or "nothing"
    return Finding(
        "label_has_both_values",
        rows < FEW_LABELLED or 0 < churned < rows,
        f"{churned:,} of {rows:,} labelled rows have {spec.column} = {spec.positive!r}; the column holds {there}",
        "Write tables.snapshots.label.positive as the column has it. From rows of one kind nothing can be learnt.",
        {"churned": churned, "labelled": rows},
    )


def suite_finding(table_name: str, verdict: Verdict) -> Finding:
    """Great Expectations' verdict as one finding."""
    return Finding(
        "great_expectations_suite_passes",
        verdict.passed,
        f"{len(verdict.results)} expectations on {verdict.rows:,} rows, judged by {verdict.judge}"
        + ("" if verdict.passed else f"; failed: {verdict.failures}"),
        "Correct the source and materialize the raw table of this window again, or correct what "
        f"tables.{table_name} in contract.yaml expects.",
    )


def sample(con: duckdb.DuckDBPyConnection, view: str, columns: list[str], rows: int, seed: int = 7) -> pd.DataFrame:
    """At most `rows` rows of a view as a frame, the same at every run."""
    count = con.execute(f"SELECT count(*) FROM {identifier(view)}").fetchall()[0][0]
    method = "" if count <= rows else f" USING SAMPLE reservoir({rows} ROWS) REPEATABLE ({seed})"
    return con.sql(f"SELECT {', '.join(map(identifier, columns))} FROM {identifier(view)}{method}").df()

"""What a contract expects of a window's rows, as one list that has two judges with the same verdicts.

Great Expectations judges a window that is small enough for pandas. For a larger one the engine counts all rows, of
every expectation in one scan, where the data is. Both count what Great Expectations counts: the rows that break an
expectation among those that it speaks of (a missing value is out of no range).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from churn_platform.contract import as_utc, plain
from churn_platform.engine import identifier
from churn_platform.ml.rules import ISSUES, key_of, known, row_rules

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    from great_expectations import ExpectationSuite

    from churn_platform.contract import Column, Contract

LIMIT = 100_000  # up to so many rows Great Expectations is as quick as the engine


@dataclass(frozen=True)
class Expectation:
    """One expectation: of rows (`broken` is SQL), of a key, or of the table as a whole (neither)."""

    type: str  # Great Expectations' name for it
    column: str
    words: str
    arguments: dict[str, Any]
    broken: str = ""  # SQL, true for a row that breaks it
    speaks_of: str = "true"  # SQL, true for the rows that it speaks of
    key: tuple[str, ...] = ()


class Result(NamedTuple):
    """What became of one expectation; `unexpected` counts rows."""

    expectation: str
    column: str
    passed: bool
    unexpected: int
    words: str


@dataclass(frozen=True)
class Verdict:
    """What all expectations say of a window's rows, and who judged: Great Expectations or the engine."""

    rows: int
    results: list[Result]
    judge: str

    @property
    def passed(self) -> bool:
        """Whether every expectation is met."""
        return all(result.passed for result in self.results)

    def table(self) -> str:
        """The verdict as a Markdown table."""
        lines = ["| expectation | column | verdict | unexpected rows |", "|---|---|---|---|"]
        for expectation, column, passed, unexpected, _ in self.results:
            lines.append(f"| {expectation} | {column} | {'passed' if passed else '**failed**'} | {unexpected:,} |")
        return "\n".join(lines)

    @property
    def failures(self) -> str:
        """The failed expectations, in one line."""
        return "; ".join(
            f"{result.expectation} on {result.column} ({result.unexpected:,} rows)"
            for result in self.results
            if not result.passed
        )


def expected(contract: Contract, table_name: str) -> list[Expectation]:
    """The list: columns, number of rows, types, every row rule, and the key."""
    table = contract.tables.items()[table_name]
    columns = [*table.kept, ISSUES]
    most = f" to {table.max_rows:,}" if table.max_rows is not None else " or more"
    found = [
        Expectation(
            "expect_table_columns_to_match_set",
            "(table)",
            "the columns of the contract, and no other",
            {"column_set": columns, "exact_match": True},
        ),
        Expectation(
            "expect_table_row_count_to_be_between",
            "(table)",
            f"{table.min_rows:,}{most} rows",
            {"min_value": table.min_rows, "max_value": table.max_rows},
        ),
        Expectation(
            "expect_column_values_to_be_null",
            ISSUES,
            "every value has its column's type",
            {"column": ISSUES},
            f"{identifier(ISSUES)} IS NOT NULL",
        ),
    ]
    for rule in row_rules(table):
        column = table.columns[rule.column]
        there = f"{known(rule.column, column)} IS NOT NULL"
        of_all = rule.expectation == "expect_column_values_to_not_be_null"
        found.append(
            Expectation(
                rule.expectation,
                rule.column,
                _words(rule.expectation, column),
                _arguments(contract, column, rule.arguments),
                f"NOT ({rule.good})",
                "true" if of_all else there,
            )
        )
    key = key_of(contract, table_name)
    if len(key) == 1:
        kind, words = "expect_column_values_to_be_unique", "each value once"
        found.append(Expectation(kind, key[0], words, {"column": key[0]}, key=tuple(key)))
    elif key:
        kind, words = "expect_compound_columns_to_be_unique", "each combination once"
        arguments = {"column_list": key, "ignore_row_if": "any_value_is_missing"}
        found.append(Expectation(kind, ", ".join(key), words, arguments, key=tuple(key)))
    return found


def _arguments(contract: Contract, column: Column, given: dict[str, Any]) -> dict[str, Any]:
    """A rule's arguments as pandas needs them: a day is its midnight, in the contract's zone for a point in time."""
    if column.type not in ("timestamp", "date"):
        return given
    zone = ZoneInfo("UTC") if column.type == "date" else contract.zone
    bounds = {"min_value", "max_value"}
    return {
        name: as_utc(value, zone) if name in bounds and value is not None else value for name, value in given.items()
    }


def _words(expectation: str, column: Column) -> str:
    if expectation == "expect_column_values_to_not_be_null":
        return "never missing"
    if expectation == "expect_column_values_to_be_in_set":
        return f"one of {', '.join(column.allowed or [])}"
    if expectation == "expect_column_values_to_match_regex":
        return f"like {column.pattern}"
    low = "" if column.min is None else f"from {plain(column.min)} "
    return f"{low}{'' if column.max is None else f'up to {plain(column.max)}'}".strip()


def suite(contract: Contract, table_name: str) -> ExpectationSuite:
    """The list as a suite of Great Expectations."""
    import great_expectations as gx

    found = gx.ExpectationSuite(name=f"{contract.name}_{table_name}")
    for expectation in expected(contract, table_name):
        kind: Any = getattr(gx.expectations, "".join(part.capitalize() for part in expectation.type.split("_")))
        bearable = {"mostly": _mostly(contract, table_name)} if expectation.broken or expectation.key else {}
        found.add_expectation(kind(**expectation.arguments, **bearable))
    return found


def _mostly(contract: Contract, table_name: str) -> float:
    return 1.0 - contract.tables.items()[table_name].max_quarantined


def judge(contract: Contract, table_name: str, rows: pd.DataFrame) -> Verdict:
    """Great Expectations' verdict on a frame of typed rows: the contract's kept columns and `_issues`, times in UTC."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    frame = rows.copy()
    for name, column in contract.tables.items()[table_name].kept.items():
        if column.type == "date" and column.pii == "keep" and name in frame:
            frame[name] = pd.to_datetime(frame[name], utc=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset(table_name)
    batch = asset.add_batch_definition_whole_dataframe("window").get_batch({"dataframe": frame})
    outcome = batch.validate(suite(contract, table_name))
    said: dict[tuple[str, str], Any] = {}
    for result in outcome.results:
        config: Any = result.expectation_config
        arguments = config.kwargs
        column_name = arguments.get("column") or ", ".join(arguments.get("column_list", [])) or "(table)"
        said[config.type, column_name] = result
    results = []
    for expectation in expected(contract, table_name):
        result = said[expectation.type, expectation.column]
        unexpected = int(result.result.get("unexpected_count") or 0) if result.result else 0
        results.append(
            Result(expectation.type, expectation.column, bool(result.success), unexpected, expectation.words)
        )
    return Verdict(len(frame), results, "Great Expectations")


def count(con: duckdb.DuckDBPyConnection, contract: Contract, table_name: str, view: str) -> Verdict:
    """The engine's verdict on all rows of a view; every expectation of rows is counted in one scan."""
    found = expected(contract, table_name)
    columns = {name for name, *_ in con.execute(f"DESCRIBE {identifier(view)}").fetchall()}
    counted = [expectation for expectation in found if expectation.broken]
    sums = [
        f"count(*) FILTER ({wanted})"
        for expectation in counted
        for wanted in (f"({expectation.speaks_of}) AND ({expectation.broken})", expectation.speaks_of)
    ]
    rows, *numbers = con.execute(f"SELECT {', '.join(['count(*)', *sums])} FROM {identifier(view)}").fetchall()[0]
    unexpected = dict(zip(_names(counted), zip(numbers[::2], numbers[1::2], strict=True), strict=True))
    results = []
    for expectation in found:
        number, of = 0, 0
        if expectation.key:
            number, of = _repeated(con, view, expectation.key)
        elif expectation.broken:
            number, of = unexpected[expectation.type, expectation.column]
        passed = of == 0 or (float(of) - float(number)) / float(of) >= _mostly(contract, table_name)
        if expectation.type == "expect_table_columns_to_match_set":
            passed = columns == set(expectation.arguments["column_set"])
        elif expectation.type == "expect_table_row_count_to_be_between":
            least, most = expectation.arguments["min_value"], expectation.arguments["max_value"]
            passed = least <= rows and (most is None or rows <= most)
        results.append(Result(expectation.type, expectation.column, passed, number, expectation.words))
    return Verdict(rows, results, "the engine (DuckDB)")


def _names(counted: list[Expectation]) -> list[tuple[str, str]]:
    """What tells expectations apart: no column has two of one type."""
    return [(expectation.type, expectation.column) for expectation in counted]


def _repeated(con: duckdb.DuckDBPyConnection, view: str, key: tuple[str, ...]) -> tuple[int, int]:
    """How many rows share their key with another, and how many have a whole key."""
    by = ", ".join(map(identifier, key))
    whole = " AND ".join(f"{identifier(column)} IS NOT NULL" for column in key)
    repeated, of = con.execute(
        "SELECT coalesce(sum(n) FILTER (n > 1), 0), coalesce(sum(n), 0) "
        f"FROM (SELECT count(*) AS n FROM {identifier(view)} WHERE {whole} GROUP BY {by})"
    ).fetchall()[0]
    return int(repeated), int(of)

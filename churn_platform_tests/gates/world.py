"""A small platform with a champion that serves: the place into which every bad model is brought.

Nothing in it is played. The training set is made up, with months of independent customers; the champion is trained on
the first four of them by the real assets, and answers as the endpoint answers: compiled, through the endpoint's own
line-up and scorer, from a real online store.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from churn_platform import prediction_log, promotion
from churn_platform.assets.training import read_training_set
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection
from churn_platform.ml import models, retrials, training
from churn_platform.ml.splits import split
from churn_platform.registered import CHALLENGER
from churn_platform.resources.tracking import PARAMETERS
from churn_platform_tests import answers, graph
from serving import online
from serving.lineup import Keeper
from serving.registry import Cache, registry
from serving.scorer import Question, Scorer

MONTHS, CUSTOMERS = 8, 300
GATES = (
    "gates: {minimum: {roc_auc: 0.6}, min_test_rows: 50, min_test_churners: 10}",
    """
gates:
  minimum: {roc_auc: 0.68}
  maximum: {calibration_error: 0.12}
  min_test_rows: 100
  min_test_churners: 20
  max_size_mb: 2
  slices: {minimum: {roc_auc: 0.6}, min_rows: 60, min_churners: 15}
""",
)
MODEL = (
    "model: {family: logistic_regression, min_windows: 3}",
    "model: {family: logistic_regression, train_windows: 2, min_windows: 3}",
)


def text() -> str:
    """The contract of the world."""
    found = graph.SIMULATED
    for old, new in (GATES, MODEL):
        assert old in found
        found = found.replace(old, new)
    return found


@dataclass
class State:
    """What no bad model may change."""

    champion: str | None
    log: list[tuple[str, str | None]]
    answers: list[dict[str, Any]]


@dataclass
class World:
    """A platform with a champion that serves, and what bad candidates are made with."""

    shop: graph.Platform
    by: Contract | None = None  # under which the newest challenger was made
    rows: pd.DataFrame = field(default_factory=lambda: graph.labelled(CUSTOMERS, MONTHS))
    checks: dict[str, dg.JobDefinition] = field(default_factory=dict)  # by contract; each is resolved once

    # -- set up

    def begin(self) -> None:
        """Bring features online, train the champion on four months, and record the whole history."""
        with pytest.MonkeyPatch.context() as patch:
            self.shop.use(patch)
            newest = self.rows[self.rows[SNAPSHOT_TIME] == self.rows[SNAPSHOT_TIME].max()]
            features = newest[["buyer", SNAPSHOT_TIME, *self.contract.feature_names]].copy()
            tables, store = self.shop.tables, self.shop.store
            tables.write("customer_features", pa.Table.from_pandas(features, preserve_index=False), "2023-09-01")
            store.apply(tables.path("customer_features"))
            with connection() as con:
                store.materialize(con, tables.read(con, "customer_features"))
            self.record(self.rows[self.rows[SNAPSHOT_TIME] < pd.Timestamp("2023-06-01", tz="UTC")])
            made = self.shop.materialize("candidate_model", "champion")
            assert made.success, (graph.why(made), self.failed(made))
            self.whole = self.record(self.rows)
            self.state()

    @property
    def contract(self) -> Contract:
        return self.shop.contract

    @cached_property
    def keeper(self) -> Keeper:
        """The endpoint's own: it loads, warms and verifies whoever the registry names."""
        found = registry(self.contract, self.shop.settings)
        return Keeper(self.contract, found, Cache(self.shop.home / "serving"))

    @cached_property
    def scorer(self) -> Scorer:
        """The endpoint's own, without HTTP around it."""
        store = online.connect(self.contract, self.shop.settings)
        return Scorer(self.contract, store, lineup=lambda: self.keeper.lineup)

    def state(self) -> State:
        """The champion, the log and what the endpoint answers."""
        self.keeper.look()
        assert not self.keeper.registry_problem, self.keeper.registry_problem
        asked = [Question(f"c{number}") for number in range(5)]
        answers = [answer for answer in asyncio.run(self.scorer.answer(asked)) if isinstance(answer, dict)]
        assert len(answers) == len(asked), "the endpoint does not answer"
        log = promotion.entries(self.shop.tables)
        return State(self.shop.alias(), [(entry.event, entry.version) for entry in log], answers)

    # -- making candidates

    def record(self, rows: pd.DataFrame) -> int:
        """Write rows as the newest version of the training set."""
        return self.shop.tables.write("training_set", pa.Table.from_pandas(rows, preserve_index=False))

    def columns(self) -> Any:
        """The contract's own encoding, unfitted."""
        return clone(models.pipeline(self.contract).named_steps["columns"])

    def fit(self, estimator: Any = None, rows: pd.DataFrame | None = None, labels: Any = None) -> Pipeline:
        """The contract's pipeline, or its encoding before another estimator, on the honest rows or others."""
        rows = self.fitted if rows is None else rows
        labels = rows[LABEL].to_numpy() if labels is None else labels
        inputs = models.frame(self.contract, rows)
        if estimator is None:
            return models.fit(self.contract, inputs, labels)
        return Pipeline([("columns", self.columns()), ("model", estimator)]).fit(inputs, labels)

    @cached_property
    def parts(self) -> Any:
        """The whole training set, divided."""
        return split(self.contract, training.in_order(self.contract, self.rows))

    @property
    def fitted(self) -> pd.DataFrame:
        """The rows that an honest candidate is fitted on."""
        return pd.concat([self.parts.train, self.parts.validation])

    def register(self, pipeline: Any, version: int | None = None, contract: Contract | None = None, **tags: str) -> str:
        """Register a model as challenger, with what training would say of it."""
        contract = contract or self.contract
        tracking = graph.Tracking(contract, self.shop.settings)
        known = self.tags(self.whole if version is None else version, contract) | tags
        sample = models.frame(contract, self.fitted.head(60))
        with tracking.run("a case", f"run-{len(tracking.versions())}"), tempfile.TemporaryDirectory() as folder:
            return str(tracking.log_model(pipeline, sample, Path(folder), known).version)

    def tags(self, version: int, contract: Contract) -> dict[str, str]:
        """What candidate_model writes to a version that is made of a version of the training set."""
        rows = read_training_set(contract, self.shop.tables, version)
        parts, honest = split(contract, rows), retrials.train(contract, rows)
        return {
            "window": "2023-09-01",
            "training_set_version": str(version),
            "threshold": repr(honest.threshold),
            "train_rate": repr(honest.train_rate),
            "test_roc_auc": repr(honest.metrics.get("test_roc_auc", float("nan"))),
            "labels_known_until": str(rows[MATURED_AT].max()),
            "test_from": str(parts.test[SNAPSHOT_TIME].min()),
            "test_to": str(parts.test[SNAPSHOT_TIME].max()),
        }

    def retrain(self, rows: pd.DataFrame | None = None, contract: Contract | None = None) -> str:
        """Record rows as a version of the training set and train on it, as candidate_model does."""
        self.by = contract = contract or self.contract
        version = self.whole if rows is None else self.record(rows)
        trained = retrials.train(contract, read_training_set(contract, self.shop.tables, version))
        return self.register(trained.pipeline, version, contract, **{PARAMETERS: json.dumps(trained.parameters)})

    # -- judging them

    @cached_property
    def in_shadow(self) -> graph.Platform:
        """The same platform under a contract that asks for answers in the shadow."""
        size = "  max_size_mb: 2\n"
        return self.shop.other((size, f"{size}  shadow_answers: 50\n"), ("drift:", "serving: {shadow: true}\ndrift:"))

    def ask_live(self, version: str, pipeline: Any, failing: int = 0) -> None:
        """Let the champion answer live requests and a version score them in its shadow; some of them it fails on."""
        rows = self.rows[self.rows[SNAPSHOT_TIME] == self.rows[SNAPSHOT_TIME].max()]
        inputs = models.frame(self.contract, rows)
        said = [models.probabilities(each, inputs) for each in (self.shop.tracking.champion().pipeline, pipeline)]
        lines = [
            answers.line(
                number,
                id=f"{version}-{number}",
                version=self.shop.alias(),
                probability=float(told),
                shadow_version=version,
                shadow_probability=None if number < failing else float(beside),
            )
            for number, (told, beside) in enumerate(zip(*said, strict=True))
        ]
        answers.segment(self.shop, *lines)
        prediction_log.land(self.shop.tables, self.contract, self.shop.settings, lambda _: None)

    def judge(self, shop: graph.Platform | None = None) -> dict[str, str]:
        """Let the real checks judge the challenger; returns gate to words of those that refuse it."""
        shop = shop or self.shop
        if shop.contract.fingerprint not in self.checks:
            selection = dg.AssetSelection.checks_for_assets(dg.AssetKey("candidate_model"))
            job = dg.define_asset_job("judge", selection=selection)
            merged = dg.Definitions.merge(shop.definitions, dg.Definitions(jobs=[job]))
            self.checks[shop.contract.fingerprint] = merged.resolve_job_def("judge")
        result = self.checks[shop.contract.fingerprint].execute_in_process(
            instance=self.shop.instance, run_config=graph.QUIET, raise_on_error=False
        )
        return self.failed(result)

    @staticmethod
    def failed(result: dg.ExecuteInProcessResult) -> dict[str, str]:
        """The checks that failed in a run, and what they said; a step that failed says it under its own name."""
        found = {
            check.check_name: str(check.metadata["verdict"].value)
            for check in result.get_asset_check_evaluations()
            if not check.passed
        }
        if not result.success and not found:
            found["model_gates"] = graph.why(result)
        return found

    def challenger(self) -> str | None:
        """The version that stands for promotion."""
        return self.shop.alias(CHALLENGER)


def noise(rows: int, seed: int = 11) -> np.random.Generator:
    """Numbers of no meaning, the same always."""
    return np.random.default_rng(seed + rows)

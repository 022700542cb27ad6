"""Training: from a training set to a fitted model, and what it shows on windows that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import LABEL, MATURED_AT, PROBABILITY, SNAPSHOT_TIME
from churn_platform.ml import metrics, models
from churn_platform.ml.splits import NotEnoughDataError, Splits, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """A fitted model and the evidence about it."""

    pipeline: Any
    splits: Splits
    train_rate: float  # the share of churners among the rows that it was fitted on
    metrics: dict[str, float]  # validation_<metric> and test_<metric>
    test_probability: Array
    reference: pd.DataFrame  # features and probability of the rows it was fitted on, a sample: what drift compares with
    importance: tuple[Array, Array]  # loss of ROC AUC on validation rows: means and deviations, per feature


def in_order(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """A training set with its times in UTC and its rows in one order, however they were stored."""
    rows = rows.copy()
    for name in (SNAPSHOT_TIME, MATURED_AT):
        rows[name] = pd.to_datetime(rows[name], utc=True)
    return rows.sort_values([SNAPSHOT_TIME, contract.customer.name], ignore_index=True)


def train(contract: Contract, rows: pd.DataFrame, say: Callable[[str], None] = lambda _: None) -> Trained:
    """Fit the contract's model.

    The validation windows are judged by a model fitted on the training windows alone; the model that is kept is
    fitted on both, and judged on the test windows, which nothing has looked at. The same rows and contract give the
    same model.

    Args:
        contract: what it says under `model`, and the features.
        rows: the training set: key, `snapshot_time`, `churned`, `label_matured_at` and the features.
        say: told what is going on.

    Raises:
        NotEnoughDataError: there are too few windows, or one class only.
    """
    parts = split(contract, in_order(contract, rows))
    threshold = contract.model.threshold
    fitted_on = pd.concat([parts.train, parts.validation])
    for name, part in (("training", parts.train), ("validation", parts.validation)):
        if part[LABEL].nunique() < 2:
            rate = part[LABEL].mean()
            raise NotEnoughDataError(
                f"all {len(part):,} {name} rows have the same label (churn rate {rate:.0%}): nothing can be learnt. "
                "Check the label's horizon, or the positive value of the label column, in contract.yaml."
            )
    say(f"fitting {contract.model.family} on {len(parts.train):,} rows, validating on {len(parts.validation):,}")
    inputs = {
        "validation": models.frame(contract, parts.validation),
        "test": models.frame(contract, parts.test),
        "fitted": models.frame(contract, fitted_on),
    }
    first = models.fit(contract, models.frame(contract, parts.train), parts.train[LABEL].to_numpy())
    validation_labels = parts.validation[LABEL].to_numpy(dtype="float64")
    found = _prefixed(
        "validation", metrics.evaluate(validation_labels, models.probabilities(first, inputs["validation"]), threshold)
    )
    importance = _permutation(first, inputs["validation"], validation_labels)
    say(f"fitting the final model on {len(fitted_on):,} rows, testing on {len(parts.test):,}")
    final = models.fit(contract, inputs["fitted"], fitted_on[LABEL].to_numpy())
    test_probability = models.probabilities(final, inputs["test"])
    test_labels = parts.test[LABEL].to_numpy(dtype="float64")
    found |= _prefixed("test", metrics.evaluate(test_labels, test_probability, threshold))
    reference = inputs["fitted"].assign(**{PROBABILITY: models.probabilities(final, inputs["fitted"])})
    if len(reference) > contract.drift.sample_rows:
        reference = reference.sample(contract.drift.sample_rows, random_state=contract.model.seed)
    return Trained(
        pipeline=final,
        splits=parts,
        train_rate=float(fitted_on[LABEL].mean()),
        metrics=found,
        test_probability=test_probability,
        reference=reference.reset_index(drop=True),
        importance=importance,
    )


def _prefixed(prefix: str, found: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in found.items() if not np.isnan(value)}


def _permutation(
    model: Any, inputs: pd.DataFrame, labels: Array, repeats: int = 3, seed: int = 7
) -> tuple[Array, Array]:
    """Loss of ROC AUC when a column is shuffled (Breiman 2001): means and deviations, shape (columns,)."""
    rows = min(len(inputs), 20_000)
    inputs, labels = inputs.iloc[:rows], labels[:rows]
    random = np.random.default_rng(seed)
    whole = metrics.fast_roc_auc(labels, models.probabilities(model, inputs))
    losses = np.zeros((len(inputs.columns), repeats))
    for position, name in enumerate(inputs.columns):
        for repeat in range(repeats):
            shuffled = inputs.copy()
            shuffled[name] = random.permutation(shuffled[name].to_numpy())
            losses[position, repeat] = whole - metrics.fast_roc_auc(labels, models.probabilities(model, shuffled))
    return losses.mean(axis=1), losses.std(axis=1)

"""Training: from a training set to a fitted model, and what it shows on windows that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import LABEL, MATURED_AT, PROBABILITY, SNAPSHOT_TIME
from churn_platform.ml import decisions, metrics, models
from churn_platform.ml.calibration import Calibration, choose
from churn_platform.ml.drift import MIN_ROWS
from churn_platform.ml.splits import NotEnoughDataError, Splits, split
from churn_platform.ml.tuning import Found, Trial, search

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """A fitted model and the evidence about it."""

    pipeline: Any  # answers predict_proba(frame) with calibrated probabilities, shape (n, 2)
    splits: Splits
    parameters: dict[str, Any]  # of the estimator, all that is not scikit-learn's own default
    search: Found | None  # None where none was asked for, or the parameters were given
    calibration: Calibration
    threshold: float  # from this probability on a customer is High Risk
    train_rate: float  # the share of churners among the rows that it was fitted on
    metrics: dict[str, float]  # validation_<metric> and test_<metric>
    test_probability: Array
    test_score: Array  # the same before calibration
    reference: pd.DataFrame  # what drift compares with: see `_reference`
    first: Any  # the model of the training windows alone, which scored the validation rows; not calibrated

    def importance(self, contract: Contract) -> tuple[Array, Array]:
        """Loss of ROC AUC on validation rows when a feature is shuffled: means and deviations, per feature.

        It takes as long as a fit, so it is computed when it is asked for, which a replay of history never does.
        """
        validation = self.splits.validation
        labels = validation[LABEL].to_numpy(dtype="float64")
        return _permutation(self.first, models.frame(contract, validation), labels)


def in_order(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """A training set with its times in UTC and its rows in one order, however they were stored."""
    rows = rows.copy()
    for name in (SNAPSHOT_TIME, MATURED_AT):
        rows[name] = pd.to_datetime(rows[name], utc=True)
    return rows.sort_values([SNAPSHOT_TIME, contract.customer.name], ignore_index=True)


def train(
    contract: Contract,
    rows: pd.DataFrame,
    say: Callable[[str], None] = lambda _: None,
    parameters: dict[str, Any] | None = None,
    each_trial: Callable[[Trial], None] = lambda _: None,
) -> Trained:
    """Fit the contract's model.

    Each choice is made on rows that what it chooses among has not seen: hyperparameters by cross-validation within the
    training windows; the calibration and the threshold on the validation windows, scored by a model of the training
    windows alone. The model that is kept is fitted on both and judged on the test windows, which nothing has looked at.
    The same rows and contract give the same model.

    Args:
        contract: what it says under `model` and `value`, and the features.
        rows: the training set: key, `snapshot_time`, `churned`, `label_matured_at` and the features.
        say: told what is going on.
        parameters: use these (`Trained.parameters` of an earlier model) and search for none.
        each_trial: given each trial of the search as it ends.

    Raises:
        NotEnoughDataError: there are too few windows, or one class only.
        ModelError: the contract's parameters are not the family's.
    """
    parts = split(contract, in_order(contract, rows))
    fitted_on = pd.concat([parts.train, parts.validation])
    for name, part in (("training", parts.train), ("validation", parts.validation)):
        if part[LABEL].nunique() < 2:
            rate = part[LABEL].mean()
            raise NotEnoughDataError(
                f"all {len(part):,} {name} rows have the same label (churn rate {rate:.0%}): nothing can be learnt. "
                "Check the label's horizon, or the positive value of the label column, in contract.yaml."
            )
    found = None
    if parameters is None and contract.model.search is not None:
        found = search(contract, parts.train.reset_index(drop=True), say, each_trial)
        parameters = found.parameters
    elif parameters is None:
        parameters = models.hyperparameters(contract.model)

    say(f"fitting {contract.model.family} on {len(parts.train):,} rows, validating on {len(parts.validation):,}")
    inputs = {
        "validation": models.frame(contract, parts.validation),
        "test": models.frame(contract, parts.test),
        "fitted": models.frame(contract, fitted_on),
    }
    labels = {name: getattr(parts, name)[LABEL].to_numpy(dtype="float64") for name in ("validation", "test")}
    first = models.fit(contract, models.frame(contract, parts.train), parts.train[LABEL].to_numpy(), parameters)
    calibration = choose(
        contract,
        parts.validation[contract.customer.name],
        labels["validation"],
        models.probabilities(first, inputs["validation"]),
    )
    say(f"calibration: {calibration}")
    threshold = _threshold(contract, parts.validation, labels["validation"], calibration.held_out)
    measured = _prefixed("validation", metrics.evaluate(labels["validation"], calibration.held_out, threshold))

    say(f"fitting the final model on {len(fitted_on):,} rows, testing on {len(parts.test):,}")
    pipeline = models.fit(contract, inputs["fitted"], fitted_on[LABEL].to_numpy(), parameters)
    final = calibration.apply(pipeline)
    test_probability = models.probabilities(final, inputs["test"])
    measured |= _prefixed("test", metrics.evaluate(labels["test"], test_probability, threshold))
    return Trained(
        pipeline=final,
        splits=parts,
        parameters=parameters,
        search=found,
        calibration=calibration,
        threshold=threshold,
        train_rate=float(fitted_on[LABEL].mean()),
        metrics=measured,
        test_probability=test_probability,
        test_score=models.probabilities(pipeline, inputs["test"]),
        reference=_reference(contract, inputs["fitted"], calibration.held_out),
        first=first,
    )


def _reference(contract: Contract, fitted: pd.DataFrame, held_out: Array) -> pd.DataFrame:
    """Features of the rows that a model was fitted on, a sample, and the probabilities of those that were held out.

    Of its own training rows a model speaks more boldly than of anybody else, and live scores would differ from that
    without any drift. So only the validation rows, scored before the model knew them, have a probability; the others
    have none. The sample holds them in proportion, and as many as drift needs at least.

    Args:
        contract: says how many rows.
        fitted: the features of the training rows and then of the validation rows.
        held_out: the probabilities of the validation rows.
    """
    known = np.concatenate([np.full(len(fitted) - len(held_out), np.nan), held_out])
    rows, random = fitted.assign(**{PROBABILITY: known}), contract.model.seed
    if len(rows) > contract.drift.sample_rows:
        held, learnt = rows.iloc[-len(held_out) :], rows.iloc[: -len(held_out)]
        share = round(contract.drift.sample_rows * len(held) / len(rows))
        many = min(len(held), max(share, MIN_ROWS))
        learnt = learnt.sample(contract.drift.sample_rows - many, random_state=random)
        rows = pd.concat([learnt, held.sample(many, random_state=random)])
    return rows.reset_index(drop=True)


def _threshold(contract: Contract, rows: pd.DataFrame, labels: Array, probability: Array) -> float:
    """What earns most on validation rows, where the contract says what a customer is worth; else its own."""
    if contract.value is None:
        return contract.model.threshold
    return decisions.best_threshold(contract, labels, probability, decisions.worth(contract, rows))


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

"""Metrics of a churn model, and honest comparisons of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from churn_platform.contract import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


NAMES: tuple[str, ...] = get_args(Metric)


def evaluate(labels: Array, probability: Array, threshold: float, weights: Array | None = None) -> dict[str, float]:
    """Every metric that a contract may gate. Metrics that need both classes are NaN when one is missing.

    Args:
        labels: 0 or 1, shape (n,).
        probability: P(churn), shape (n,).
        threshold: from this probability on, churn is predicted.
        weights: how many customers a row stands for, above 0, shape (n,); default one each.
    """
    from sklearn.metrics import (
        accuracy_score,
        average_precision_score,
        brier_score_loss,
        precision_score,
        recall_score,
        roc_auc_score,
    )

    both = 0 < labels.sum() < len(labels)
    decided = (probability >= threshold).astype("int64")
    macro: dict[str, Any] = {"average": "macro", "zero_division": 0.0, "sample_weight": weights}
    return {
        "roc_auc": float(roc_auc_score(labels, probability, sample_weight=weights)) if both else float("nan"),
        "pr_auc": float(average_precision_score(labels, probability, sample_weight=weights)) if both else float("nan"),
        "brier": float(brier_score_loss(labels, probability, sample_weight=weights)),
        "calibration_error": calibration_error(labels, probability, weights=weights),
        "accuracy": float(accuracy_score(labels, decided, sample_weight=weights)),
        "precision_macro": float(precision_score(labels, decided, **macro)),
        "recall_macro": float(recall_score(labels, decided, **macro)),
    }


def calibration_error(labels: Array, probability: Array, bins: int = 10, weights: Array | None = None) -> float:
    """Expected calibration error over bins of equal size (Naeini et al. 2015, with quantile bins).

    Equal probabilities share a bin: where they were split up, the result would hang on the order of the rows.
    """
    if not len(labels):
        return float("nan")
    weights = np.ones(len(labels)) if weights is None else weights
    _, level = np.unique(probability, return_inverse=True)
    heavy = np.bincount(level, weights=weights)
    place = ((np.cumsum(heavy) - heavy / 2) / weights.sum())[level]
    chosen = np.minimum((place * bins).astype("int64"), bins - 1)
    gaps = np.bincount(chosen, weights=weights * (labels - probability), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_difference(  # noqa: PLR0917 - two models and what they are compared on
    metric: Callable[[Array, Array], float],
    labels: Array,
    first: Array,
    second: Array,
    customers: pd.Series[str] | None = None,
    confidence: float = 0.95,
    *,
    draws: int = 1000,
    seed: int = 7,
) -> Interval:
    """`metric(first) - metric(second)` on the same rows, with a percentile bootstrap interval (Efron 1979).

    Customers are drawn, not rows: a customer's rows at several dates are not independent of each other.
    """
    groups = np.arange(len(labels)) if customers is None else pd.factorize(customers)[0]
    number = int(groups.max()) + 1
    of_first, of_second = (weighed(metric, labels, said) for said in (first, second))
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        weights = np.bincount(random.integers(0, number, number), minlength=number)[groups]
        if 0 < weights @ labels < weights.sum():
            found.append(of_first(weights) - of_second(weights))
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) if found else (float("nan"), float("nan"))
    return Interval(float(metric(labels, first) - metric(labels, second)), float(low), float(high))


def interval(
    metric: Callable[[Array, Array], float],
    labels: Array,
    probability: Array,
    customers: pd.Series[str],
    confidence: float = 0.95,
    *,
    draws: int = 1000,
    seed: int = 7,
) -> Interval:
    """A metric with its percentile bootstrap interval, customers drawn whole; NaN where all rows are of one class."""
    if not 0 < labels.sum() < len(labels):
        return Interval(float("nan"), float("nan"), float("nan"))
    groups = pd.factorize(customers)[0]
    number = int(groups.max()) + 1
    measured, random = weighed(metric, labels, probability), np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        weights = np.bincount(random.integers(0, number, number), minlength=number)[groups]
        if 0 < weights @ labels < weights.sum():
            found.append(measured(weights))
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) if found else (float("nan"), float("nan"))
    return Interval(float(metric(labels, probability)), float(low), float(high))


def mean_paired_difference(  # noqa: PLR0917 - two models and what they are compared on
    metric: Callable[[Array, Array], float],
    place: NDArray[np.int64],
    labels: Array,
    first: Array,
    second: Array,
    customers: pd.Series[str],
    confidence: float = 0.95,
    *,
    draws: int = 500,
    seed: int = 7,
) -> Interval:
    """The mean over several windows of `metric(first) - metric(second)`, with its bootstrap interval.

    Each window is measured by itself, for its churn rate is its own; customers are drawn with all their windows.

    Args:
        metric: of labels and probabilities.
        place: which window each row belongs to, 0 to n - 1.
        labels: 0 or 1, shape (rows,).
        first: P(churn) by one model, shape (rows,).
        second: P(churn) by the other.
        customers: whose the rows are.
        confidence: of the interval.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    groups = pd.factorize(customers)[0]
    windows = [np.flatnonzero(place == number) for number in np.unique(place)]
    weighed_by_window = [
        tuple(weighed(metric, labels[window], said[window]) for said in (first, second)) for window in windows
    ]
    random = np.random.default_rng(seed)

    def mean(weights: NDArray[np.int64]) -> float:
        found = []
        for window, (of_first, of_second) in zip(windows, weighed_by_window, strict=True):
            drawn = weights[window]
            if 0 < drawn @ labels[window] < drawn.sum():
                found.append(of_first(drawn) - of_second(drawn))
        return float(np.mean(found)) if found else float("nan")

    number = int(groups.max()) + 1
    means = [mean(np.bincount(random.integers(0, number, number), minlength=number)[groups]) for _ in range(draws)]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return Interval(mean(np.ones(len(labels), dtype="int64")), float(low), float(high))


def weighed(
    metric: Callable[[Array, Array], float], labels: Array, probability: Array
) -> Callable[[NDArray[np.int64]], float]:
    """A metric as a function of how often each row counts, shape (n,), for the many draws of a bootstrap.

    What has to be sorted for ROC AUC is sorted once: a draw then costs a twentieth. Any other metric is given the rows
    themselves. With rows of one class only, ROC AUC is NaN.
    """
    if metric is brier:
        errors = (probability - labels) ** 2
        return lambda weights: float(weights @ errors / weights.sum())
    if metric is not fast_roc_auc:
        place = np.arange(len(labels))

        def of_rows(weights: NDArray[np.int64]) -> float:
            rows = np.repeat(place, weights)
            return metric(labels[rows], probability[rows])

        return of_rows
    order = np.argsort(probability, kind="stable")
    positive, ranked = labels[order] > 0.5, probability[order]
    ties = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))

    def roc_auc(weights: NDArray[np.int64]) -> float:
        drawn = weights[order]
        churned = np.add.reduceat(drawn * positive, ties)
        stayed = np.add.reduceat(drawn, ties) - churned
        pairs = float(churned.sum()) * float(stayed.sum())
        below = np.cumsum(stayed) - stayed / 2  # who stayed and has a lower score, ties counted half
        return float(churned @ below) / pairs if pairs else float("nan")

    return roc_auc


def by_slice(rows: pd.DataFrame, column: str, labels: Array, probability: Array, min_rows: int = 30) -> pd.DataFrame:
    """ROC AUC, churn rate and mean probability for each value of a column with enough rows of both classes."""
    from sklearn.metrics import roc_auc_score

    found = []
    values = rows[column].astype(object).where(rows[column].notna(), "(unknown)").to_numpy()
    for value in sorted(set(values), key=str):
        there = values == value
        part = labels[there]
        if there.sum() >= min_rows and 0 < part.sum() < len(part):
            found.append(
                {
                    "slice": f"{column} = {value}",
                    "rows": int(there.sum()),
                    "churn_rate": float(part.mean()),
                    "mean_probability": float(probability[there].mean()),
                    "roc_auc": float(roc_auc_score(part, probability[there])),
                }
            )
    return pd.DataFrame(found, columns=["slice", "rows", "churn_rate", "mean_probability", "roc_auc"])


def fast_roc_auc(labels: Array, probability: Array) -> float:
    """ROC AUC as the Mann-Whitney statistic; scikit-learn's is several times slower inside a bootstrap."""
    from scipy.stats import rankdata

    ranks = rankdata(probability)
    positive = labels > 0.5
    n = positive.sum()
    m = len(labels) - n
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def brier(labels: Array, probability: Array) -> float:
    """Mean squared error of the probabilities."""
    return float(np.mean((probability - labels) ** 2))

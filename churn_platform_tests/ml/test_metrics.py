"""Metrics are those that everybody knows, and two models are compared honestly."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from churn_platform.ml import metrics

Array = NDArray[np.float64]


def world(seed: int, n: int = 500, noise: float = 1.0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    truth = random.normal(size=n)
    labels = (random.random(n) < 1 / (1 + np.exp(-2 * truth))).astype("float64")
    return labels, 1 / (1 + np.exp(-(2 * truth + noise * random.normal(size=n))))


def test_the_metrics_of_a_small_example_are_those_worked_out_by_hand() -> None:
    labels, probability = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.9, 0.4, 0.5, 0.1])
    found = metrics.evaluate(labels, probability, 0.5)
    assert found["roc_auc"] == pytest.approx(3 / 4)
    assert found["pr_auc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.25 + 0.01) / 4)
    assert found["accuracy"] == 0.5  # 0.5 itself is churn
    assert found["precision_macro"] == 0.5
    assert found["recall_macro"] == 0.5


def test_every_metric_that_a_contract_may_gate_is_there() -> None:
    from typing import get_args

    from churn_platform.contract import Metric

    assert set(metrics.evaluate(*world(1), 0.5)) == set(get_args(Metric))


def test_with_one_class_only_the_ranking_metrics_are_not_a_number() -> None:
    found = metrics.evaluate(np.zeros(5), np.linspace(0, 1, 5), 0.5)
    assert math.isnan(found["roc_auc"])
    assert math.isnan(found["pr_auc"])
    assert found["brier"] == pytest.approx(np.mean(np.linspace(0, 1, 5) ** 2))


@pytest.mark.parametrize("digits", [1, 2, 15])
def test_the_fast_roc_auc_is_scikit_learns_ties_and_all(digits: int) -> None:
    labels, probability = world(2)
    rounded = probability.round(digits)
    assert metrics.fast_roc_auc(labels, rounded) == pytest.approx(roc_auc_score(labels, rounded), abs=1e-12)


def test_brier_is_the_mean_squared_error() -> None:
    assert metrics.brier(np.array([1.0, 0.0]), np.array([0.5, 0.25])) == pytest.approx((0.25 + 0.0625) / 2)


def test_calibration_error_of_bins_that_can_be_seen() -> None:
    probability = np.repeat([0.1, 0.7], 50)
    labels = np.concatenate([np.repeat([0.0, 1.0], [40, 10]), np.repeat([0.0, 1.0], [15, 35])])
    assert metrics.calibration_error(labels, probability, bins=2) == pytest.approx((0.1 + 0.0) / 2)


def test_calibration_error_does_not_hang_on_the_order_of_the_rows() -> None:
    labels = np.repeat([0.0, 1.0], 50)
    constant = np.full(100, 0.5)  # right on average, and nothing more was claimed
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(100)
        assert metrics.calibration_error(labels[order], constant) == pytest.approx(0.0)
    labels, probability = world(3)
    order = np.random.default_rng(9).permutation(len(labels))
    coarse = probability.round(1)
    assert metrics.calibration_error(labels[order], coarse[order]) == pytest.approx(
        metrics.calibration_error(labels, coarse)
    )


def test_calibration_error_finds_a_model_that_exaggerates() -> None:
    random = np.random.default_rng(4)
    honest = random.random(20_000)
    labels = (random.random(20_000) < honest).astype("float64")
    assert metrics.calibration_error(labels, honest) < 0.02
    assert metrics.calibration_error(labels, np.clip(honest + 0.2, 0, 1)) > 0.1


def test_without_rows_there_is_no_calibration_error() -> None:
    assert math.isnan(metrics.calibration_error(np.array([]), np.array([])))


@pytest.mark.parametrize("digits", [1, 15])
@pytest.mark.parametrize("name", ["fast_roc_auc", "brier", "calibration_error"])
def test_a_metric_of_weighted_rows_is_that_of_the_rows_so_many_times(name: str, digits: int) -> None:
    labels, probability = world(2)
    metric, rounded = getattr(metrics, name), probability.round(digits)
    of_weights = metrics.weighed(metric, labels, rounded)
    for seed in range(5):
        weights = np.random.default_rng(seed).poisson(1.0, len(labels))
        rows = np.repeat(np.arange(len(labels)), weights)
        assert of_weights(weights) == pytest.approx(metric(labels[rows], rounded[rows]), abs=1e-12)


def test_rows_of_one_class_have_no_weighted_roc_auc() -> None:
    labels, probability = world(2)
    assert math.isnan(metrics.weighed(metrics.fast_roc_auc, labels, probability)((labels > 0.5).astype("int64")))


def compare(first: Array, second: Array, labels: Array, customers: pd.Series | None = None) -> metrics.Interval:
    return metrics.paired_difference(metrics.fast_roc_auc, labels, first, second, customers, draws=300)


def test_a_model_compared_with_itself_differs_by_nothing() -> None:
    labels, probability = world(5)
    found = compare(probability, probability, labels)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_of_two_models_that_are_equally_good_neither_is_found_better() -> None:
    outside = 0
    for seed in range(20):
        labels, first = world(seed, noise=1.0)
        random = np.random.default_rng(seed + 1000)
        signal = np.log(first / (1 - first))
        one, two = signal + random.normal(size=len(signal)), signal + random.normal(size=len(signal))
        found = compare(one, two, labels)
        assert found.low <= found.value <= found.high
        outside += not found.low <= 0 <= found.high
    assert outside <= 4  # 1 in 20 is expected at 95 %


def test_a_clearly_better_model_is_found_and_so_is_a_clearly_worse_one() -> None:
    labels, good = world(6, n=2_000, noise=0.1)
    poor = np.random.default_rng(1).random(2_000)
    assert compare(good, poor, labels).low > 0
    assert compare(poor, good, labels).high < 0


def test_rows_of_one_customer_are_not_independent_so_the_interval_is_wider() -> None:
    labels, first = world(7, n=200, noise=0.5)
    second = np.clip(first + np.random.default_rng(2).normal(scale=0.2, size=200), 0, 1)
    repeated = [np.repeat(values, 10) for values in (first, second, labels)]
    customers = pd.Series(np.repeat([f"c{n}" for n in range(200)], 10))
    by_row = compare(*repeated)
    by_customer = compare(*repeated, customers)
    assert by_row.value == pytest.approx(by_customer.value)
    assert by_customer.high - by_customer.low > 2 * (by_row.high - by_row.low)


def test_the_interval_is_the_same_at_every_run() -> None:
    labels, probability = world(8)
    other = probability**2 + 0.01 * np.random.default_rng(3).random(len(labels))
    assert compare(probability, other, labels) == compare(probability, other, labels)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    labels, first = world(9)
    _, second = world(10)
    intervals = [
        metrics.paired_difference(metrics.brier, labels, first, second, confidence=confidence, draws=300)
        for confidence in (0.8, 0.99)
    ]
    assert intervals[1].low < intervals[0].low
    assert intervals[1].high > intervals[0].high


def test_slices_are_judged_one_by_one_and_small_ones_are_left_out() -> None:
    labels, probability = world(11, n=400)
    rows = pd.DataFrame({"segment": ["a"] * 200 + ["b"] * 150 + [None] * 40 + ["tiny"] * 10})
    found = metrics.by_slice(rows, "segment", labels, probability).set_index("slice")
    assert set(found.index) == {"segment = a", "segment = b", "segment = (unknown)"}
    row = found.loc["segment = a"]
    assert row["rows"] == 200
    assert row["churn_rate"] == pytest.approx(labels[:200].mean())
    assert row["roc_auc"] == pytest.approx(roc_auc_score(labels[:200], probability[:200]))

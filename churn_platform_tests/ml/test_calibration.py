"""Calibration: probabilities that come true, in the order that the scores had."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import skops.io
from scipy.special import expit

from churn_platform.ml import calibration, metrics, models
from churn_platform.ml.calibration import CalibratedModel, Isotonic, Sigmoid, choose
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

MODEL = "model: {family: logistic_regression, min_windows: 3}"


def contract(method: str = "auto"):
    return changed(graph.SIMULATED, (MODEL, MODEL.replace("min_windows", f"calibration: {method}, min_windows")))


def world(rows: int, distort, seed: int = 1):
    """Customers, labels and scores: `distort` makes scores of the true log-odds."""
    random = np.random.default_rng(seed)
    log_odds = random.normal(-1.5, 1.2, rows)
    labels = (random.random(rows) < expit(log_odds)).astype("float64")
    return pd.Series([f"c{n}" for n in range(rows)]), labels, np.asarray(distort(log_odds), dtype="float64")


def true(log_odds):
    return expit(log_odds)


def shifted(log_odds):  # what balanced class weights do
    return expit(2 * log_odds + 2)


def bent(log_odds):  # no sigmoid undoes this
    return np.where(log_odds < -1, 0.1 + 0.02 * expit(log_odds), 0.75 + 0.2 * expit(log_odds))


def test_scores_that_come_true_are_left_as_they_are():
    found = choose(contract(), *world(3000, true))
    assert (found.method, found.curve) == ("none", None)
    assert set(found.brier) == {"none", "sigmoid", "isotonic"}
    pipeline = object()
    assert found.apply(pipeline) is pipeline


def test_a_shift_is_undone_by_a_sigmoid():
    found = choose(contract(), *world(3000, shifted))
    assert found.method == "sigmoid"
    assert found.curve.slope == pytest.approx(0.5, abs=0.1)
    _, labels, score = world(20_000, shifted, seed=2)
    assert metrics.calibration_error(labels, score) > 0.15
    assert metrics.calibration_error(labels, found.curve(score)) < 0.02


def test_what_no_sigmoid_undoes_is_undone_by_isotonic_regression():
    found = choose(contract(), *world(5000, bent))
    assert found.method == "isotonic"
    assert found.brier["isotonic"] < found.brier["sigmoid"] < found.brier["none"]
    _, labels, score = world(20_000, bent, seed=2)
    assert metrics.calibration_error(labels, found.curve(score)) < 0.02


@pytest.mark.parametrize("certain", [[0.0, 1.0], [0.0], [1.0]])
def test_isotonic_regression_takes_scores_that_are_all_0_or_1(certain):
    random = np.random.default_rng(1)
    score = random.choice(np.array(certain), 2000)
    labels = (random.random(2000) < 0.2 + 0.5 * score).astype("float64")
    found = choose(contract("isotonic"), pd.Series([f"c{number}" for number in range(2000)]), labels, score)
    for value in certain:
        assert found.curve(np.array([value])) == pytest.approx(labels[score == value].mean(), abs=0.002)


def test_isotonic_regression_is_not_looked_at_where_rows_are_few():
    found = choose(contract(), *world(calibration.ISOTONIC_FROM - 1, bent))
    assert set(found.brier) == {"none", "sigmoid"}


@pytest.mark.parametrize("method", ["none", "sigmoid", "isotonic"])
def test_the_contracts_own_choice_is_taken_without_asking(method):
    found = choose(contract(method), *world(400, shifted))
    assert found.method == method
    assert list(found.brier) == [method]


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("distort", [true, shifted, bent])
def test_no_ranking_is_changed(method, distort):
    """So no gate on ROC AUC can tell a model from itself, calibrated."""
    customers, labels, score = world(3000, distort)
    curve = choose(contract(method), customers, labels, score).curve
    _, unseen_labels, unseen = world(3000, distort, seed=9)
    for said in (score, unseen, np.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])):
        calibrated = curve(said)
        assert (np.diff(calibrated[np.argsort(said, kind="stable")]) > 0).all()
        assert ((calibrated > 0) & (calibrated < 1)).all()
    assert metrics.fast_roc_auc(unseen_labels, curve(unseen)) == metrics.fast_roc_auc(unseen_labels, unseen)


@pytest.mark.parametrize("method", ["auto", "sigmoid", "isotonic"])
def test_a_model_that_ranks_the_wrong_way_round_still_does(method):
    customers, labels, score = world(3000, lambda log_odds: expit(-log_odds))
    found = choose(contract(method), customers, labels, score)
    after = score if found.curve is None else found.curve(score)
    assert metrics.fast_roc_auc(labels, after) == metrics.fast_roc_auc(labels, score) < 0.3


def test_a_kind_is_judged_on_customers_that_its_curve_was_not_fitted_on():
    """A customer's rows are alike; fitted on some of them, an isotonic curve would know the others."""
    customers, labels, score = world(1200, shifted)
    copies = [np.repeat(part, 5) for part in (customers.to_numpy(), labels, score)]
    once, often = (
        choose(contract("isotonic"), pd.Series(c), *rest) for c, *rest in ((customers, labels, score), copies)
    )
    assert often.brier["isotonic"] == pytest.approx(once.brier["isotonic"], rel=0.02)
    fitted_on_all = metrics.brier(labels, once.curve(score))
    assert fitted_on_all < once.brier["isotonic"] == pytest.approx(metrics.brier(labels, once.held_out))


def test_the_same_rows_give_the_same_curve():
    first, second = (choose(contract("isotonic"), *world(2000, bent)) for _ in range(2))
    assert first.curve == second.curve
    assert (first.held_out == second.held_out).all()


def test_scores_that_separate_the_classes_give_a_finite_curve():
    customers, labels, _ = world(500, true)
    for method in ("sigmoid", "isotonic"):
        curve = choose(contract(method), customers, labels, 0.2 + 0.6 * labels).curve
        assert 0 < curve(np.array([0.2]))[0] < 0.05
        assert 0.95 < curve(np.array([0.8]))[0] < 1


@pytest.mark.parametrize("curve", [Sigmoid(0.7, -0.4), Isotonic([0.0, 0.3, 1.0], [0.05, 0.4, 0.9])])
def test_a_calibrated_model_is_stored_without_pickle_and_comes_back_the_same(curve):
    rows = graph.customers(200)
    inputs = models.frame(contract(), rows)
    model = CalibratedModel(models.fit(contract(), inputs, graph.outcomes(rows)), curve)
    stored = skops.io.dumps(model)
    assert set(skops.io.get_untrusted_types(data=stored)) <= set(models.TRUSTED_TYPES)
    loaded = skops.io.loads(stored, trusted=models.TRUSTED_TYPES)
    assert loaded.curve == curve
    answers = loaded.predict_proba(inputs)
    assert (answers == model.predict_proba(inputs)).all()
    assert answers.sum(axis=1) == pytest.approx(1)
    assert (models.probabilities(model, inputs) == curve(models.probabilities(model.pipeline, inputs))).all()
    assert (model.predict(inputs) == (answers[:, 1] >= 0.5)).all()

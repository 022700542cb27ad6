"""Training: what the model is fitted on, what it is judged on, and what is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from churn_platform.ml import decisions, drift, metrics, training
from churn_platform.ml.models import frame, probabilities
from churn_platform.ml.splits import NotEnoughDataError
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

CONTRACT = changed(graph.SIMULATED)


@pytest.fixture(scope="module")
def trained():
    return training.train(CONTRACT, graph.labelled())


def test_metrics_of_validation_and_test_are_there_and_good(trained):
    for part in ("validation", "test"):
        assert trained.metrics[f"{part}_roc_auc"] > 0.7
        assert trained.metrics[f"{part}_brier"] < 0.25
    assert trained.test_probability.shape == (300,)
    assert trained.splits.test["snapshot_time"].nunique() == 1


def test_the_reference_is_what_the_model_was_fitted_on_with_the_probabilities_of_those_held_out(trained):
    fitted_on = len(trained.splits.train) + len(trained.splits.validation)
    assert len(trained.reference) == fitted_on
    assert list(trained.reference.columns) == [*CONTRACT.feature_names, "churn_probability"]
    assert trained.reference["churn_probability"].tolist() == pytest.approx(
        [*[float("nan")] * len(trained.splits.train), *trained.calibration.held_out], nan_ok=True
    )


def test_scores_do_not_drift_where_nothing_changes_however_well_a_model_knows_its_own_rows():
    forest = "model: {family: random_forest, params: {n_estimators: 40, max_depth: 20, min_samples_leaf: 1}, "
    contract = changed(graph.SIMULATED, ("model: {family: logistic_regression, ", forest))
    found = training.train(contract, graph.labelled(700, 4))
    now = graph.labelled(2000, 1, seed=99)
    now["churn_probability"] = probabilities(found.pipeline, frame(contract, now))
    report = drift.compare(contract, found.reference, now)
    assert report.score_drift is not None
    assert report.score_drift < 0.1
    boldly = probabilities(found.pipeline, frame(contract, found.reference))
    in_sample = drift.compare(contract, found.reference.assign(churn_probability=boldly), now)
    assert in_sample.score_drift > 0.2  # what it says of its own rows would have drifted from the first day


def test_the_base_rate_is_that_of_the_rows_it_was_fitted_on(trained):
    labels = np.r_[trained.splits.train["churned"], trained.splits.validation["churned"]]
    assert trained.train_rate == labels.mean()


def test_the_same_rows_in_any_order_give_the_same_model(trained):
    shuffled = graph.labelled().sample(frac=1, random_state=4)
    again = training.train(CONTRACT, shuffled)
    assert (again.test_probability == trained.test_probability).all()
    assert again.metrics == trained.metrics
    assert again.reference.equals(trained.reference)


def test_the_test_window_has_no_influence_on_the_model(trained):
    rows = graph.labelled()
    newest = rows["snapshot_time"] == rows["snapshot_time"].max()
    rows.loc[newest, "churned"] = 1 - rows.loc[newest, "churned"]
    again = training.train(CONTRACT, rows)
    assert (again.test_probability == trained.test_probability).all()
    assert again.metrics["test_roc_auc"] == pytest.approx(1 - trained.metrics["test_roc_auc"])


def test_the_validation_window_has_no_influence_on_what_it_is_judged_by(trained):
    """The model that is judged on validation rows is not the one that was fitted on them."""
    rows = graph.labelled()
    validation = rows["snapshot_time"] == trained.splits.validation["snapshot_time"].iloc[0]
    rows.loc[validation, "churned"] = 1 - rows.loc[validation, "churned"]
    again = training.train(CONTRACT, rows)
    assert again.metrics["validation_roc_auc"] == pytest.approx(1 - trained.metrics["validation_roc_auc"])


def test_importance_finds_what_matters_and_what_does_not(trained):
    losses, deviations = trained.importance(CONTRACT)
    means = dict(zip(CONTRACT.feature_names, losses, strict=True))
    assert means["recency_days"] > 0.05
    assert abs(means["tenure_months"]) < 0.02
    assert (deviations >= 0).all()


def test_the_reference_is_a_sample_where_there_are_many_rows():
    contract = changed(graph.SIMULATED, ("share: 0.5}", "share: 0.5, sample_rows: 1000}"))
    reference = training.train(contract, graph.labelled(400)).reference
    assert len(reference) == 1000
    assert reference["churn_probability"].notna().sum() == drift.MIN_ROWS  # a quarter of the rows would be too few


@pytest.mark.parametrize("label", [0, 1])
def test_rows_that_all_have_the_same_label_are_refused_with_their_rate(label):
    with pytest.raises(NotEnoughDataError, match=rf"same label \(churn rate {100 * label}%\)"):
        training.train(CONTRACT, graph.labelled().assign(churned=label))


def test_a_test_window_with_one_class_is_trained_and_left_to_the_gates_to_refuse():
    rows = graph.labelled()
    rows.loc[rows["snapshot_time"] == rows["snapshot_time"].max(), "churned"] = 0
    found = training.train(CONTRACT, rows).metrics
    assert "test_roc_auc" not in found
    assert "validation_roc_auc" in found


def test_too_few_windows_are_refused():
    with pytest.raises(NotEnoughDataError):
        training.train(CONTRACT, graph.labelled(months=2))


@pytest.mark.parametrize(
    "family", ["gradient_boosting, params: {max_iter: 10}", "random_forest, params: {n_estimators: 10}"]
)
def test_a_feature_that_is_not_known_yet_does_not_stop_training(family):
    contract = changed(graph.SIMULATED, ("family: logistic_regression", f"family: {family}"))
    found = training.train(contract, graph.labelled(100, 3).assign(gap_90d=np.nan, segment=None))
    assert len(probabilities(found.pipeline, frame(contract, graph.customers(20)))) == 20


SEARCHING = changed(
    graph.SIMULATED,
    (
        "model: {family: logistic_regression, min_windows: 3}",
        "model: {family: gradient_boosting, params: {max_iter: 20}, min_windows: 3, search: {trials: 4, seconds: 600}}",
    ),
)


@pytest.fixture(scope="module")
def searched():
    return training.train(SEARCHING, graph.labelled(200))


def test_the_same_rows_and_seed_give_the_same_model_with_a_search_too(searched):
    again = training.train(SEARCHING, graph.labelled(200).sample(frac=1, random_state=4))
    assert again.parameters == searched.parameters
    assert (again.test_probability == searched.test_probability).all()
    assert again.threshold == searched.threshold
    assert again.metrics == searched.metrics


def test_the_parameters_of_a_search_give_its_model_without_one(searched):
    recorded = json.loads(json.dumps(searched.parameters))
    again = training.train(SEARCHING, graph.labelled(200), parameters=recorded)
    assert again.search is None
    assert again.parameters == searched.parameters
    assert (again.test_probability == searched.test_probability).all()


def test_what_is_searched_is_used(searched):
    assert searched.parameters == searched.search.parameters
    estimator = getattr(searched.pipeline, "pipeline", searched.pipeline).named_steps["model"]
    assert {name: estimator.get_params()[name] for name in searched.parameters} == searched.parameters
    assert searched.parameters["max_iter"] == 20


def test_neither_validation_nor_test_rows_have_a_part_in_the_search(searched):
    rows = graph.labelled(200)
    newest = rows["snapshot_time"] >= searched.splits.validation["snapshot_time"].min()
    rows.loc[newest, "churned"] = 1 - rows.loc[newest, "churned"]
    again = training.train(SEARCHING, rows)
    assert again.parameters == searched.parameters


BALANCED = changed(
    graph.SIMULATED,
    (
        "model: {family: logistic_regression, min_windows: 3}",
        "model: {family: logistic_regression, params: {class_weight: balanced}, min_windows: 3}",
    ),
)


@pytest.fixture(scope="module")
def balanced():
    """Few churn, and the model is told to take them for half."""
    rows = graph.labelled(600)
    kept = (rows["churned"] == 0) | (np.random.default_rng(1).random(len(rows)) < 0.15)
    return training.train(BALANCED, rows[kept])


def test_calibration_undoes_what_balanced_weights_do_to_probabilities(balanced):
    labels = balanced.splits.test["churned"].to_numpy(dtype="float64")
    assert balanced.calibration.method != "none"
    assert metrics.calibration_error(labels, balanced.test_score) > 0.1
    assert balanced.metrics["test_calibration_error"] < 0.06
    assert balanced.metrics["test_brier"] < metrics.brier(labels, balanced.test_score)


def test_calibration_leaves_the_ranking_of_the_test_window_alone(balanced):
    labels = balanced.splits.test["churned"].to_numpy(dtype="float64")
    assert metrics.fast_roc_auc(labels, balanced.test_probability) == metrics.fast_roc_auc(labels, balanced.test_score)


def test_the_threshold_is_the_contracts_where_it_does_not_say_what_a_customer_is_worth(trained):
    assert trained.threshold == CONTRACT.model.threshold


def test_the_threshold_is_what_earns_most_on_validation_rows_by_their_calibrated_probabilities(balanced):
    value = "value: {customer_value: 100, offer_cost: 10, acceptance: 0.4, hold_out: 0, rest_days: 60}\nlabel:"
    text = graph.SIMULATED.replace("family: logistic_regression", "family: logistic_regression, threshold: 0.4")
    contract = changed(text, ("label:", value))
    found = training.train(contract, graph.labelled())
    validation = found.splits.validation
    labels = validation["churned"].to_numpy(dtype="float64")
    worth = decisions.worth(contract, validation)
    assert found.threshold == decisions.best_threshold(contract, labels, found.calibration.held_out, worth) != 0.4
    assert 0.15 < found.threshold < 0.35  # an offer pays for itself from 10 / (0.4 * 100) on
    decided = found.test_probability >= found.threshold
    assert found.metrics["test_accuracy"] == np.mean(decided == found.splits.test["churned"])


def test_it_says_what_it_does():
    said = []
    training.train(CONTRACT, graph.labelled(100, 3), said.append)
    assert said[0].startswith("fitting logistic_regression on 100 rows")

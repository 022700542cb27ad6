"""Equality: a compiled model that differs anywhere from its original is told from one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from churn_platform.ml import equality, models
from churn_platform.ml.calibration import CalibratedModel, Sigmoid
from churn_platform.ml.compiled import compile_model
from churn_platform.ml.equality import Compiled, compare, compiled, rows
from churn_platform_tests.ml.test_explanations import FAMILIES, fit


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(equality, "ROWS", 8000)


@pytest.fixture(scope="module", params=FAMILIES)
def fitted(request):
    contract, model, inputs = fit(request.param)
    return contract, CalibratedModel(model, Sigmoid(0.8, -0.1)), inputs


def asked(contract, model):
    return lambda table: models.probabilities(model, models.frame(contract, table))


def verdict(fitted, change=lambda candidate: candidate, threshold=0.3):
    contract, model, inputs = fitted
    candidate = change(compile_model(contract, model, 0.3, inputs))
    return compare(contract, compiled(contract, candidate), asked(contract, model), threshold, inputs)


def test_the_model_itself_passes_to_the_last_digits(fitted):
    found = verdict(fitted)
    assert found.passed, found.words
    assert found.metadata["rows"] == 8000
    assert found.metadata["largest_difference"] < 1e-12
    assert "the same 8,000 answers" in found.words


def test_the_rows_are_what_customers_are_and_what_they_might_be(fitted):
    contract, _, inputs = fitted
    thresholds = {"age": np.array([41.5]), "recency_days": np.array([7.1])}
    found = rows(contract, inputs, thresholds, 4000)
    ages = found["age"].to_numpy()
    assert (ages == 41.5).sum() > 100
    for beside in (np.nextafter(41.5, -np.inf), np.nextafter(np.float32(41.5), np.float32(np.inf))):
        assert (ages == beside).sum() > 50
    assert np.isnan(ages).sum() > 300
    known = set(inputs["segment"])
    assert found["segment"].isna().sum() > 300
    assert (~found["segment"].isin(known) & found["segment"].notna()).sum() > 300
    assert found.iloc[::4].merge(inputs.drop_duplicates(), how="left", indicator=True)["_merge"].eq("both").all()
    assert rows(contract, inputs, thresholds, 4000).equals(found)


def test_another_threshold_is_another_decision_although_all_probabilities_are_the_same(fitted):
    found = verdict(fitted, threshold=0.5)
    assert not found.passed
    assert found.metadata["differ"] == 0
    assert found.metadata["decisions"] > 0
    assert "in the decision" in found.words


def nudged(part, column, by):
    """A change of the compiled model's own arrays, to one place in one of them."""

    def change(candidate):
        array = getattr(candidate._model, part)
        (array if column is None else array[column])[:] = by(array if column is None else array[column])
        return candidate

    return change


def next_up(values):
    return np.where(np.isfinite(values), np.nextafter(values, np.float32(np.inf)), values)


def test_forest_thresholds_that_are_one_single_precision_step_too_high_are_found():
    found = verdict(fit("random_forest"), nudged("nodes", "threshold", next_up))
    assert not found.passed
    assert "differ in probability by more than 1e-06" in found.words


def test_boosting_thresholds_that_were_rounded_to_single_precision_are_found():
    found = verdict(fit("gradient_boosting"), nudged("cuts", None, lambda cuts: cuts.astype("f4").astype("f8")))
    assert not found.passed


def missing_to_the_right(candidate):
    """Nodes that send missing values to the left look at the line that has them as they are instead."""
    model, links = candidate._model, candidate._model.nodes["link"]
    for how in model.plan:
        low = (links >> model.shift == how["low"]) & (links >> model.shift > 0)
        links[low] -= np.uint32(how["low"] - how["line"] << model.shift)
    return candidate


def test_missing_values_that_take_the_other_turn_are_found():
    found = verdict(fit("gradient_boosting"), missing_to_the_right)
    assert not found.passed
    assert "missing" in found.words


def test_a_median_that_is_another_is_found():
    found = verdict(fit("random_forest"), nudged("plan", "fill", lambda fill: fill * 0))
    assert not found.passed
    assert "missing" in found.words


def test_a_model_that_answers_no_number_is_refused():
    contract, model, inputs = fit("logistic_regression")
    broken = Compiled(lambda table: np.full(len(table), np.nan), 0.3, {})
    found = compare(contract, broken, asked(contract, model), 0.3, inputs)
    assert not found.passed
    assert found.metadata["differ"] == 8000


def test_the_words_name_the_row_by_its_features_alone():
    contract, model, inputs = fit("logistic_regression")
    known = inputs.assign(buyer="c-4711")
    wrong = Compiled(lambda table: np.zeros(len(table)), 0.3, {})
    words = compare(contract, wrong, asked(contract, model), 0.3, known).words
    assert "c-4711" not in words
    assert "buyer" not in words
    for name in contract.feature_names:
        assert f"{name} = " in words

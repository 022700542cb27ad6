"""The pipeline: what it takes, what it answers, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from churn_platform.contract import Contract
from churn_platform.ml import models
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

FAMILIES = ["logistic_regression", "random_forest", "gradient_boosting"]
SMALL = {
    "logistic_regression": "{}",
    "random_forest": "{n_estimators: 10}",
    "gradient_boosting": "{max_iter: 10}",
}


def contract_of(family: str, params: str | None = None) -> Contract:
    written = f"model: {{family: {family}, params: {params or SMALL[family]}, min_windows: 3}}"
    return changed(graph.SIMULATED, ("model: {family: logistic_regression, min_windows: 3}", written))


@pytest.fixture(params=FAMILIES)
def contract(request):
    return contract_of(request.param)


def fitted(contract, rows, labels):
    return models.fit(contract, models.frame(contract, rows), labels)


def test_the_frame_holds_the_contracts_features_in_its_order_whatever_order_they_came_in():
    contract, rows = contract_of("logistic_regression"), graph.customers(5)
    shuffled = rows[sorted(rows.columns, reverse=True)].assign(something_else=1)
    found = models.frame(contract, shuffled)
    assert list(found.columns) == contract.feature_names
    assert found["purchases_30d"].tolist() == rows["purchases_30d"].tolist()


def test_the_frame_has_numbers_as_float64_and_categories_as_text_or_none():
    rows = pd.DataFrame(
        {
            "purchases_30d": [1, 2],
            "spent_90d": pd.array([1, None], dtype="Int64"),
            "recency_days": ["3", None],
            "gap_90d": [None, None],
            "tenure_months": np.array([1, 2], dtype="float32"),
            "age": [True, False],
            "segment": [np.nan, "plus"],
        },
        index=[7, 9],
    )
    found = models.frame(contract_of("logistic_regression"), rows)
    numbers = found.drop(columns="segment")
    assert set(numbers.dtypes) == {np.dtype("float64")}
    assert numbers.loc[7, ["purchases_30d", "spent_90d", "recency_days", "age"]].tolist() == [1, 1, 3, 1]
    assert np.isnan(numbers.loc[9, ["spent_90d", "recency_days", "gap_90d"]].astype(float)).all()
    assert found["segment"].tolist() == [None, "plus"]
    assert found.index.tolist() == [7, 9]


def test_rows_that_lack_features_are_refused_and_all_of_them_named():
    rows = graph.customers(3).drop(columns=["age", "gap_90d"])
    with pytest.raises(models.ModelError, match="lack the features gap_90d, age"):
        models.frame(contract_of("logistic_regression"), rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parameter_that_the_family_does_not_have_is_refused_by_name_with_those_that_it_has(family):
    contract = contract_of(family, "{learning_speed: 0.1}")
    with pytest.raises(
        models.ModelError, match=rf"{family} has no parameter learning_speed \(model\.params .*It has: "
    ):
        models.pipeline(contract)


def test_a_seed_among_the_parameters_is_refused_with_the_place_where_it_belongs():
    with pytest.raises(models.ModelError, match=r"model\.seed"):
        models.pipeline(contract_of("random_forest", "{random_state: 3}"))


def test_the_contracts_parameters_replace_the_defaults_and_keep_their_type():
    spec = contract_of("random_forest", "{n_estimators: 30, max_depth: null, max_features: 0.5}").model
    found = models.hyperparameters(spec)
    assert found["n_estimators"] == 30
    assert isinstance(found["n_estimators"], int)
    assert found["max_depth"] is None
    assert found["max_features"] == 0.5
    assert found["min_samples_leaf"] == models.FAMILIES["random_forest"].defaults["min_samples_leaf"]
    chosen = models.pipeline(contract_of("random_forest", "{n_estimators: 30}")).named_steps["model"]
    assert chosen.n_estimators == 30


def test_each_family_learns_who_churns(contract):
    rows, labels = graph.customers(600), graph.outcomes(graph.customers(600))
    model = fitted(contract, rows, labels)
    new = graph.customers(600, seed=2)
    found = models.probabilities(model, models.frame(contract, new))
    churned = graph.outcomes(new, seed=2) == 1
    assert found[churned].mean() > found[~churned].mean() + 0.1


def test_the_same_rows_and_seed_give_the_same_probabilities_to_the_last_bit(contract):
    rows, labels = graph.customers(300), graph.outcomes(graph.customers(300))
    inputs = models.frame(contract, rows)
    first, second = (models.probabilities(fitted(contract, rows, labels), inputs) for _ in range(2))
    assert (first == second).all()


def test_another_seed_gives_another_forest():
    rows, labels = graph.customers(300), graph.outcomes(graph.customers(300))
    one = contract_of("random_forest")
    other = one.model_copy(update={"model": one.model.model_copy(update={"seed": 8})})
    inputs = models.frame(one, rows)
    found = [models.probabilities(fitted(c, rows, labels), inputs) for c in (one, other)]
    assert (found[0] != found[1]).any()


def test_a_customers_probability_does_not_depend_on_who_else_is_scored(contract):
    rows, labels = graph.customers(300), graph.outcomes(graph.customers(300))
    model = fitted(contract, rows, labels)
    inputs = models.frame(contract, rows)
    alone = models.probabilities(model, inputs.iloc[[5]])
    assert alone[0] == pytest.approx(models.probabilities(model, inputs)[5], abs=1e-12)


def test_categories_that_training_never_saw_do_not_stop_the_model(contract):
    rows, labels = graph.customers(300), graph.outcomes(graph.customers(300))
    model = fitted(contract, rows, labels)
    new = graph.customers(4).assign(segment=["platinum", None, "plus", ""])
    found = models.probabilities(model, models.frame(contract, new))
    assert found.shape == (4,)


@pytest.mark.parametrize("column", ["gap_90d", "segment"])
@pytest.mark.parametrize("when", ["training", "scoring", "both"])
def test_a_column_of_which_nothing_is_known_does_not_stop_the_model(contract, column, when):
    rows, labels = graph.customers(300), graph.outcomes(graph.customers(300))
    empty = {column: None if column == "segment" else np.nan}
    known = rows.assign(**empty) if when in ("training", "both") else rows
    model = fitted(contract, known, labels)
    scored = rows.assign(**empty) if when in ("scoring", "both") else rows
    assert len(models.probabilities(model, models.frame(contract, scored))) == 300


def test_a_customer_of_whom_nothing_at_all_is_known_gets_a_probability(contract):
    rows, labels = graph.customers(300), graph.outcomes(graph.customers(300))
    nothing = pd.DataFrame([dict.fromkeys(contract.feature_names)])
    assert 0 <= models.probabilities(fitted(contract, rows, labels), models.frame(contract, nothing))[0] <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_contract_with_numbers_only_or_categories_only_has_a_model_too(family):
    whole = contract_of(family)
    rows, labels = graph.customers(200), graph.outcomes(graph.customers(200))
    for names in (["purchases_30d", "age"], ["segment"]):
        some = {name: whole.features.definitions[name] for name in names}
        features = whole.features.model_copy(update={"definitions": some})
        contract = Contract.model_construct(**{**dict(whole), "features": features})
        assert contract.feature_names == names
        assert len(models.probabilities(fitted(contract, rows, labels), models.frame(contract, rows))) == 200


class Says:
    def __init__(self, answer):
        self.answer = np.array(answer, dtype="float64")

    def predict_proba(self, inputs):
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        [[0.5, np.nan], [0.5, 0.5]],
        [[0.5, np.inf], [0.5, 0.5]],
        [[-np.inf, 0.5], [0.5, 0.5]],
        [[1.1, -0.1], [0.5, 0.5]],
        [[0.0, 1.5], [0.5, 0.5]],
        [[0.5, 0.5]],
        [[0.5], [0.5]],
        [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]],
        [0.5, 0.5],
    ],
)
def test_an_answer_that_is_not_one_probability_per_row_is_refused(answer):
    with pytest.raises(models.ModelError, match="not one probability per row"):
        models.probabilities(Says(answer), pd.DataFrame({"a": [1, 2]}))


def test_a_good_answer_is_the_second_column():
    found = models.probabilities(Says([[0.9, 0.1], [0.0, 1.0]]), pd.DataFrame({"a": [1, 2]}))
    assert found.tolist() == [0.1, 1.0]


def test_a_model_that_met_one_class_only_gives_no_answer():
    contract, rows = contract_of("random_forest"), graph.customers(50)
    model = fitted(contract, rows, np.zeros(50))
    with pytest.raises(models.ModelError):
        models.probabilities(model, models.frame(contract, rows))

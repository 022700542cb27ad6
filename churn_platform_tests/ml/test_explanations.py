"""Explanations: contributions add up to the score, and are said in words that a person understands."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from churn_platform.ml import explanations, models, training
from churn_platform.ml.calibration import CalibratedModel, Sigmoid
from churn_platform.ml.explanations import Explainer, UnexplainedError
from churn_platform_tests import graph
from churn_platform_tests.worlds import PURCHASES, changed

FAMILIES = {
    "logistic_regression": "",
    "random_forest": ", params: {n_estimators: 20}",
    "gradient_boosting": ", params: {max_iter: 40}",
}


def contract_of(family: str):
    return changed(graph.SIMULATED, ("family: logistic_regression", f"family: {family}{FAMILIES[family]}"))


def fit(family: str):
    """Contract, model and inputs; some numbers are missing, some categories are rare."""
    contract = contract_of(family)
    rows = graph.labelled(300, 3)
    rows.loc[::9, "age"] = np.nan
    rows.loc[:5, "segment"], rows.loc[6:12, "segment"], rows.loc[20:60, "segment"] = "odd", "rare", None
    inputs = models.frame(contract, rows)
    return contract, models.fit(contract, inputs, rows["churned"].to_numpy()), inputs


@pytest.fixture(scope="module", params=FAMILIES)
def fitted(request):
    return fit(request.param)


def test_contributions_and_base_add_up_to_the_score_of_every_row(fitted):
    contract, model, inputs = fitted
    explainer = Explainer(contract, model, inputs)
    found = explainer.contributions(inputs)
    assert found.shape == (len(inputs), len(contract.feature_names))
    assert np.abs(explainer.base + found.sum(axis=1) - explainer.score(inputs)).max() < 1e-9


def test_the_score_is_the_models_own(fitted):
    contract, model, inputs = fitted
    score, probability = Explainer(contract, model, inputs).score(inputs), models.probabilities(model, inputs)
    said = score if contract.model.family == "random_forest" else 1 / (1 + np.exp(-score))
    assert np.abs(said - probability).max() < 1e-12


def test_what_is_explained_lies_inside_the_calibration(fitted):
    contract, model, inputs = fitted
    plain = Explainer(contract, model, inputs).contributions(inputs)
    calibrated = CalibratedModel(model, Sigmoid(0.5, 0.1))
    assert (Explainer(contract, calibrated, inputs).contributions(inputs) == plain).all()


def test_each_feature_owns_the_columns_that_it_was_encoded_as():
    """Changing one feature changes nothing of the others' contributions in a linear model, and nothing is mixed up."""
    contract, model, inputs = fit("logistic_regression")
    explainer = Explainer(contract, model, inputs)
    before = explainer.contributions(inputs)
    for position, name in enumerate(contract.feature_names):
        other = inputs.assign(**{name: "premium" if name == "segment" else 3.0})
        moved = np.abs(explainer.contributions(other) - before).max(axis=0) > 1e-9
        assert moved.nonzero()[0].tolist() == [position]


def test_linear_contributions_are_those_of_shap():
    contract, model, inputs = fit("logistic_regression")
    explainer = Explainer(contract, model, inputs)
    encoded = model[:-1].transform(inputs)
    shap = explanations._shap()
    theirs = shap.LinearExplainer(model[-1], shap.maskers.Independent(encoded, max_samples=len(encoded)))
    summed = theirs.shap_values(encoded)[:, :6].sum(axis=1)  # the numbers without their indicators
    ours = ((encoded - encoded.mean(axis=0)) * model[-1].coef_[0])[:, :6].sum(axis=1)
    assert np.abs(summed - ours).max() < 1e-9
    assert explainer.base == pytest.approx(theirs.expected_value)


def test_the_quiet_are_told_that_they_are_quiet(fitted):
    contract, model, inputs = fitted
    quiet = inputs.assign(recency_days=90.0, purchases_30d=0.0).iloc[:5]
    for reasons in Explainer(contract, model, inputs).reasons(quiet):
        assert 1 <= len(reasons) <= 3
        assert "no purchase for 90 days, far above the usual" in " / ".join(reason.words for reason in reasons)
        sizes = [reason.contribution for reason in reasons]
        assert sizes == sorted(sizes, reverse=True)
        assert min(sizes) > 0


def test_reasons_on_both_sides_are_the_strongest_ones(fitted):
    contract, model, inputs = fitted
    explainer = Explainer(contract, model, inputs)
    row = inputs.iloc[[7]]
    (reasons,) = explainer.reasons(row, most=4, only_raising=False)
    sizes = np.abs(explainer.contributions(row)[0])
    assert [abs(reason.contribution) for reason in reasons] == sorted(sizes, reverse=True)[: len(reasons)]


def test_importance_finds_what_the_world_was_made_of(fitted):
    contract, model, inputs = fitted
    sizes = explanations.importance(Explainer(contract, model, inputs), inputs)
    size = dict(zip(contract.feature_names, sizes, strict=True))
    noise = max(size[name] for name in ("segment", "tenure_months", "spent_90d"))
    assert min(size["recency_days"], size["purchases_30d"]) > 2 * noise


def test_partial_dependence_rises_with_silence(fitted):
    _, model, inputs = fitted
    values, means = explanations.partial_dependence(model, inputs, "recency_days")
    assert values == sorted(values)
    assert means[-1] > means[0] + 0.1
    kinds, means = explanations.partial_dependence(model, inputs, "segment")
    assert set(kinds) == {"odd", "plus", "premium", "rare", "standard"}
    assert ((means > 0) & (means < 1)).all()


def test_a_model_of_trees_without_shap_says_what_to_install(fitted, monkeypatch):
    contract, model, inputs = fitted
    monkeypatch.setitem(sys.modules, "shap", None)
    if contract.model.family == "logistic_regression":
        Explainer(contract, model, inputs)
    else:
        with pytest.raises(UnexplainedError, match="pip install shap"):
            Explainer(contract, model, inputs)


def test_a_model_of_somebody_else_is_not_explained():
    contract = contract_of("logistic_regression")
    with pytest.raises(UnexplainedError, match="not made by"):
        Explainer(contract, object(), models.frame(contract, graph.customers(30)))


def test_features_that_only_a_number_or_only_text_have_are_explained():
    contract = changed(PURCHASES)
    random = np.random.default_rng(1)
    rows = pd.DataFrame({name: random.exponential(10, 200) for name in contract.feature_names})
    inputs = models.frame(contract, rows)
    model = models.fit(contract, inputs, (random.random(200) < 0.4).astype(int))
    explainer = Explainer(contract, model, inputs)
    total = explainer.base + explainer.contributions(inputs).sum(axis=1)
    assert np.abs(total - explainer.score(inputs)).max() < 1e-9


def test_the_figures_of_a_trained_model_are_drawn():
    contract = contract_of("gradient_boosting")
    figures = explanations.figures(contract, training.train(contract, graph.labelled(200)))
    assert set(figures) == {"contributions", "partial_dependence"}
    titles = [axes.get_title() for axes in figures["partial_dependence"].axes]
    assert {"recency_days", "purchases_30d"} <= set(titles)

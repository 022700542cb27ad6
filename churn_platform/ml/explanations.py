"""Explanations: what a probability is made of, feature by feature, and the same in words.

A model's score is the sum of a base, which is what it says on average, and one contribution for each feature: its
Shapley value (Lundberg and Lee 2017, "A unified approach to interpreting model predictions"). For a linear model that
is coefficient times distance from the mean, exactly; for trees it comes from shap's TreeExplainer, which is exact too
(Lundberg et al. 2020). What one feature was encoded as, in several columns, is summed again.

Contributions add up to the score that the model computes inside: log-odds, or a forest's share of votes. Calibration
after it is a rising curve, so what raises the score raises the probability. They say what moved the model, not what
would move the customer.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.ml import models, reasons
from churn_platform.ml.calibration import CalibratedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from churn_platform.contract import Contract
    from churn_platform.ml.training import Trained

    Array = NDArray[np.float64]

_ROWS = 300  # that figures look at: the picture does not change with more, the time does
_SHOWN = 6  # features whose partial dependence is drawn
_GRID = 12
_SEED = 7


class UnexplainedError(RuntimeError):
    """A model cannot be explained here; the message says why, and what to do."""


class Explainer:
    """Explains the answers of one model.

    Args:
        contract: names and describes the features.
        model: fitted by `ml.training`, calibrated or not.
        reference: rows that the model was fitted on (`Trained.reference`); they say what is usual.

    Raises:
        UnexplainedError: the model needs the package shap, which is not installed; or it is none of ours.
    """

    def __init__(self, contract: Contract, model: Any, reference: pd.DataFrame) -> None:
        self.contract = contract
        known = models.frame(contract, reference)
        self._usual = usual(contract, known)
        pipeline = underlying(model)
        self._encode, self._estimator = pipeline[:-1], pipeline[-1]
        self._owner = owners(contract, pipeline)
        self._trees: Any = None
        if hasattr(self._estimator, "coef_"):
            self._mean = self._encode.transform(known).mean(axis=0)
            self.base = float(self._estimator.intercept_[0] + self._estimator.coef_[0] @ self._mean)
        else:
            self._trees = _shap().TreeExplainer(self._estimator)
            self.base = float(np.ravel(self._trees.expected_value)[-1])  # of churning, the second class

    def contributions(self, inputs: pd.DataFrame) -> Array:
        """What each feature contributes to each row's score, shape (n, features).

        Args:
            inputs: `models.frame(contract, ...)`.
        """
        encoded = np.asarray(self._encode.transform(inputs), dtype="float64")
        if self._trees is None:
            columns = (encoded - self._mean) * self._estimator.coef_[0]
        else:
            columns = np.asarray(self._trees.shap_values(encoded, check_additivity=False))
            columns = columns[..., 1] if columns.ndim == 3 else columns  # a forest's are per class
        found = np.zeros((len(self.contract.feature_names), len(inputs)))
        np.add.at(found, self._owner, columns.T)
        return found.T

    def score(self, inputs: pd.DataFrame) -> Array:
        """What the contributions of a row and the base add up to, as the model computes it, shape (n,)."""
        encoded = self._encode.transform(inputs)
        if hasattr(self._estimator, "decision_function"):
            return np.asarray(self._estimator.decision_function(encoded), dtype="float64")
        return np.asarray(self._estimator.predict_proba(encoded)[:, 1], dtype="float64")

    def reasons(self, inputs: pd.DataFrame, most: int = 3, only_raising: bool = True) -> list[list[reasons.Reason]]:
        """For each row, the features that moved its score most, the strongest first.

        Args:
            inputs: `models.frame(contract, ...)`.
            most: how many at most.
            only_raising: leave out what lowered the score.
        """
        known: list[dict[str, Any]] = inputs.to_dict("records")  # type: ignore[assignment]
        rows = zip(known, self.contributions(inputs), strict=True)
        return [
            reasons.reasons(self.contract, values, row, self._usual, most=most, only_raising=only_raising)
            for values, row in rows
        ]


def usual(contract: Contract, known: pd.DataFrame) -> dict[str, float]:
    """The median of each numeric feature; NaN where no row knows it."""
    return {name: float(known[name].dropna().median()) for name in contract.numeric_features}


def underlying(model: Any) -> Any:
    """The scikit-learn pipeline inside a model, calibrated or not.

    Raises:
        UnexplainedError: there is none.
    """
    from sklearn.pipeline import Pipeline

    pipeline = model.pipeline if isinstance(model, CalibratedModel) else model
    if not isinstance(pipeline, Pipeline) or list(pipeline.named_steps) != ["columns", "model"]:
        raise UnexplainedError("this model was not made by ml.models.pipeline, so what its columns mean is not known.")
    return pipeline


def _shap() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shap 0.51 builds its colours as matplotlib no longer likes
            import shap
    except ImportError:
        raise UnexplainedError(
            "explaining a model of trees takes the package shap, which is not installed here: pip install shap."
        ) from None
    return shap


def owners(contract: Contract, pipeline: Any) -> NDArray[np.int64]:
    """For each encoded column, the position of the feature that it was made of."""
    columns = pipeline.named_steps["columns"]
    owned: list[str] = []
    if contract.numeric_features:
        owned += contract.numeric_features
        numeric = columns.named_transformers_["numeric"]
        if hasattr(numeric, "named_steps"):
            indicator = numeric.named_steps["impute"].indicator_
            owned += [contract.numeric_features[place] for place in indicator.features_]
    if contract.categorical_features:
        encoder = columns.named_transformers_["categorical"]
        infrequent = getattr(encoder, "infrequent_categories_", [None] * len(encoder.categories_))
        for name, known, rare in zip(contract.categorical_features, encoder.categories_, infrequent, strict=True):
            together = 0 if rare is None else len(rare) - 1  # the rare ones share a column
            owned += [name] * (len(known) - together)
    place = {name: position for position, name in enumerate(contract.feature_names)}
    return np.array([place[name] for name in owned], dtype="int64")


# ---------------------------------------------------------------------------------------------------- all customers


def importance(explainer: Explainer, inputs: pd.DataFrame) -> Array:
    """The mean size of each feature's contribution, shape (features,)."""
    return np.asarray(np.abs(explainer.contributions(inputs)).mean(axis=0))


def partial_dependence(model: Any, inputs: pd.DataFrame, name: str) -> tuple[list[Any], Array]:
    """The mean probability when one feature is set to each of some values for everybody (Friedman 2001).

    Returns the values, which for a number are quantiles and for text the most frequent categories, and the means.
    """
    known = inputs[name].dropna()
    grid: list[Any]
    if inputs[name].dtype == object:
        grid = sorted(known.value_counts().index[:_GRID], key=str)
    else:
        grid = np.unique(np.quantile(known, np.linspace(0.02, 0.98, _GRID))).tolist() if len(known) else []
    if not grid:
        return [], np.zeros(0)
    stacked = pd.concat([inputs.assign(**{name: value}) for value in grid], ignore_index=True)
    return grid, models.probabilities(model, stacked).reshape(len(grid), len(inputs)).mean(axis=1)


def figures(contract: Contract, trained: Trained) -> dict[str, Figure]:
    """Figures of what the model looks at, name to figure: contributions, and the most important partial dependences."""
    from churn_platform.ml import plots

    inputs = trained.reference[contract.feature_names]
    inputs = inputs.sample(min(len(inputs), _ROWS), random_state=_SEED)
    explainer = Explainer(contract, trained.pipeline, trained.reference)
    sizes = importance(explainer, inputs)
    strongest = [contract.feature_names[place] for place in np.argsort(-sizes, kind="stable")[:_SHOWN]]
    curves = {name: partial_dependence(trained.pipeline, inputs, name) for name in strongest}
    return {
        "contributions": plots.contributions(contract.feature_names, sizes, "what moves the score"),
        "partial_dependence": plots.partial_dependence(
            {name: curve for name, curve in curves.items() if curve[0]}, "mean probability, everybody set to a value"
        ),
    }

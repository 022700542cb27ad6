"""The model: one scikit-learn pipeline from feature columns to a churn probability.

Everything that is learnt from data, imputation and encoding included, is fitted inside the pipeline on training rows
only and travels with it, so that training and serving cannot transform differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline

    from churn_platform.contract import Contract, ModelSpec


@dataclass(frozen=True)
class Between:
    """A number that a search may choose; `log` where a factor matters and not a difference."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is an integer: both bounds are."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class OneOf:
    """A choice among a few values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Family:
    """A kind of model: what makes its estimator, with which parameters, and where better ones may lie.

    Every parameter of `space` has a value in `defaults`, so that a search can begin with what there is without it.
    """

    estimator: Callable[[], type[Any]]
    defaults: Mapping[str, Any]
    space: Mapping[str, Between | OneOf]
    numeric: tuple[str, ...]  # what numbers go through before the estimator: "impute", "scale"

    def build(self, params: Mapping[str, Any], seed: int) -> Any:
        """The unfitted estimator."""
        return self.estimator()(random_state=seed, **params)


def _logistic_regression() -> type[Any]:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression  # type: ignore[no-any-return]


def _random_forest() -> type[Any]:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier  # type: ignore[no-any-return]


def _gradient_boosting() -> type[Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier  # type: ignore[no-any-return]


FEW_ROWS = 300_000  # below, a fit has one thread

# Churners are few. Weights may help a model to rank them and spoil its probabilities, which calibration sets right
# again; whether they help is for the search to say.
_WEIGHTS = OneOf((None, "balanced"))

FAMILIES: dict[str, Family] = {
    "logistic_regression": Family(
        estimator=_logistic_regression,
        defaults={"C": 0.1, "max_iter": 2000, "class_weight": None},
        space={"C": Between(1e-3, 100.0, log=True), "class_weight": _WEIGHTS},
        numeric=("impute", "scale"),
    ),
    "random_forest": Family(
        estimator=_random_forest,
        defaults={
            "n_estimators": 200,
            "max_depth": 10,
            "min_samples_leaf": 5,
            "max_features": "sqrt",
            "class_weight": None,
            "n_jobs": 1,  # one row is answered faster without threads
        },
        space={
            "max_depth": Between(3, 20),
            "min_samples_leaf": Between(1, 100, log=True),
            "max_features": OneOf(("sqrt", 0.5, 1.0)),
            "class_weight": _WEIGHTS,
        },
        numeric=("impute",),
    ),
    "gradient_boosting": Family(
        estimator=_gradient_boosting,
        # Shallow and slow: a churn table has thousands of customers more often than millions.
        defaults={
            "max_iter": 150,
            "learning_rate": 0.05,
            "max_leaf_nodes": 15,
            "min_samples_leaf": 40,
            "l2_regularization": 1.0,
            "max_features": 1.0,
            "early_stopping": False,
            "class_weight": None,
        },
        space={
            "max_iter": Between(50, 300),
            "learning_rate": Between(0.01, 0.2, log=True),
            "max_leaf_nodes": Between(4, 48, log=True),
            "min_samples_leaf": Between(10, 200, log=True),
            "l2_regularization": Between(1e-2, 100.0, log=True),
            "max_features": Between(0.3, 1.0),
            "class_weight": _WEIGHTS,
        },
        numeric=(),  # it splits on missing values by itself
    ),
}

# What a stored model may consist of besides the types that skops trusts by itself. A model that needs more is
# somebody else's, and is refused when it is logged and again when it is loaded.
TRUSTED_TYPES = [
    "churn_platform.ml.calibration.CalibratedModel",
    "churn_platform.ml.calibration.Isotonic",
    "churn_platform.ml.calibration.Sigmoid",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
]


class ModelError(ValueError):
    """A model, or what it is to be trained on, cannot be used."""


def hyperparameters(spec: ModelSpec) -> dict[str, Any]:
    """The parameters of the contract's model: the family's defaults, and what the contract says instead.

    Raises:
        ModelError: the contract names a parameter that the family does not have.
    """
    family = FAMILIES[spec.family]
    params = {**family.defaults, **spec.params}
    known = family.build(family.defaults, spec.seed).get_params()
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise ModelError(
            f"{spec.family} has no parameter {', '.join(unknown)} (model.params in contract.yaml). "
            f"It has: {', '.join(sorted(known))}."
        )
    if "random_state" in params:
        raise ModelError("model.params.random_state: a model's seed is model.seed in contract.yaml; write it there.")
    return params


def searched(spec: ModelSpec) -> dict[str, Between | OneOf]:
    """What a search may choose: the family's space without what the contract has fixed under `params`."""
    return {name: choice for name, choice in FAMILIES[spec.family].space.items() if name not in spec.params}


def pipeline(contract: Contract, parameters: Mapping[str, Any] | None = None) -> Pipeline:
    """An unfitted pipeline of the contract's family. Input: `frame(contract, ...)`; output: P(churn) in column 1.

    Args:
        contract: its family, seed and features.
        parameters: of the estimator; default `hyperparameters(contract.model)`.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    spec = contract.model
    family = FAMILIES[spec.family]
    made: dict[str, Any] = {
        "impute": SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        "scale": StandardScaler(),
    }
    numeric: Any = Pipeline([(step, made[step]) for step in family.numeric]) if family.numeric else "passthrough"
    encode = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20, sparse_output=False)
    columns = ColumnTransformer(
        [("numeric", numeric, contract.numeric_features), ("categorical", encode, contract.categorical_features)]
    )
    chosen = hyperparameters(spec) if parameters is None else parameters
    return Pipeline([("columns", columns), ("model", family.build(chosen, spec.seed))])


def fit(
    contract: Contract, inputs: pd.DataFrame, labels: NDArray[Any], parameters: Mapping[str, Any] | None = None
) -> Pipeline:
    """The contract's pipeline, fitted on `frame(contract, ...)` and its labels.

    A number of which no row knows anything is 0 while fitting: scikit-learn's gradient boosting stops at such a column,
    and a model that met one value only never asks for it.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    unknown = [name for name in contract.numeric_features if inputs[name].isna().all()]
    # OpenMP's threads meet at every split of a tree, which for few rows takes longer than the split. In the platform's
    # processes, where other libraries' threads are about, two fitted 50,000 rows in 9.0 s where one took 2.5 s.
    with threadpool_limits(1 if len(inputs) < FEW_ROWS else None):
        return pipeline(contract, parameters).fit(inputs.assign(**dict.fromkeys(unknown, 0.0)), labels)


def frame(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """The model's input: the contract's features in its order, numbers as float64, categories as text or None.

    Raises:
        ModelError: a feature is missing from the rows.
    """
    lacking = [name for name in contract.feature_names if name not in rows.columns]
    if lacking:
        raise ModelError(f"the rows lack the features {', '.join(lacking)}.")
    columns: dict[str, Any] = {}
    for name in contract.feature_names:
        if contract.is_categorical(name):
            values = rows[name].astype(object)
            columns[name] = values.mask(values.isna(), None)
        else:
            columns[name] = pd.to_numeric(rows[name]).astype("float64")
    return pd.DataFrame(columns, index=rows.index)


def probabilities(model: Any, inputs: pd.DataFrame) -> NDArray[np.float64]:
    """P(churn) for each row, shape (n,).

    Raises:
        ModelError: the model answers something that is no probability.
    """
    found = np.asarray(model.predict_proba(inputs), dtype="float64")
    if found.shape != (len(inputs), 2) or not np.isfinite(found).all() or (found < 0).any() or (found > 1).any():
        raise ModelError("the model's answer is not one probability per row between 0 and 1.")
    return found[:, 1]

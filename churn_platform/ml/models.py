"""The model: one scikit-learn pipeline from feature columns to a churn probability.

Everything that is learnt from data, imputation and encoding included, is fitted inside the pipeline on training rows
only and travels with it, so that training and serving cannot transform differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline

    from churn_platform.contract import Contract, ModelSpec

DEFAULTS: dict[str, dict[str, Any]] = {
    "logistic_regression": {"C": 0.1, "max_iter": 2000},
    "random_forest": {"n_estimators": 200, "max_depth": 10, "min_samples_leaf": 5, "n_jobs": 1},
    # Shallow and slow: a churn table has thousands of customers more often than millions.
    "gradient_boosting": {
        "max_iter": 150,
        "learning_rate": 0.05,
        "max_leaf_nodes": 15,
        "min_samples_leaf": 40,
        "l2_regularization": 1.0,
        "early_stopping": False,
    },
}

# What a stored model may consist of besides the types that skops trusts by itself. A model that needs more is
# somebody else's, and is refused when it is logged and again when it is loaded.
TRUSTED_TYPES = [
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
    params = {**DEFAULTS[spec.family], **spec.params}
    known = _estimator(spec.family, DEFAULTS[spec.family], spec.seed).get_params()
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise ModelError(
            f"{spec.family} has no parameter {', '.join(unknown)} (model.params in contract.yaml). "
            f"It has: {', '.join(sorted(known))}."
        )
    if "random_state" in params:
        raise ModelError("model.params.random_state: a model's seed is model.seed in contract.yaml; write it there.")
    return params


def pipeline(contract: Contract) -> Pipeline:
    """An unfitted pipeline of the contract's family. Input: `frame(contract, ...)`; output: P(churn) in column 1."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    spec = contract.model
    numeric: Any = "passthrough"  # gradient boosting splits on missing values by itself
    if spec.family != "gradient_boosting":
        steps: list[tuple[str, Any]] = [
            ("impute", SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True))
        ]
        if spec.family == "logistic_regression":
            steps.append(("scale", StandardScaler()))
        numeric = Pipeline(steps)
    encode = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20, sparse_output=False)
    columns = ColumnTransformer(
        [("numeric", numeric, contract.numeric_features), ("categorical", encode, contract.categorical_features)]
    )
    return Pipeline([("columns", columns), ("model", _estimator(spec.family, hyperparameters(spec), spec.seed))])


def fit(contract: Contract, inputs: pd.DataFrame, labels: NDArray[Any]) -> Pipeline:
    """The contract's pipeline, fitted on `frame(contract, ...)` and its labels.

    A number of which no row knows anything is 0 while fitting: scikit-learn's gradient boosting stops at such a column,
    and a model that met one value only never asks for it.
    """
    unknown = [name for name in contract.numeric_features if inputs[name].isna().all()]
    return pipeline(contract).fit(inputs.assign(**dict.fromkeys(unknown, 0.0)), labels)


def _estimator(family: str, params: dict[str, Any], seed: int) -> Any:
    if family == "logistic_regression":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(random_state=seed, **params)
    if family == "random_forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(random_state=seed, **params)
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=seed, **params)


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

"""Calibration: a model's scores made into probabilities that come true as often as they say.

A curve from score to probability is fitted on the validation rows, of which the model that scored them knows nothing.
The model that is kept is fitted on training and validation rows together and carries that same curve. This is sound as
far as the two models distort alike: they are the same recipe, the second on somewhat more rows, so it is a little less
overconfident than the curve takes it for. It also takes the churn rate of the validation windows for that of the
future. Both assumptions are put to the test on the test window, which the curve has not seen.

Every curve is strictly increasing. So calibration changes no ranking: ROC AUC, and every gate on it, stays what it was;
and a model that ranks the wrong way round is not turned into a good one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from churn_platform.ml.splits import hashed_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]
    Method = Literal["none", "sigmoid", "isotonic"]

# Below so many rows an isotonic curve follows chance: Niculescu-Mizil and Caruana 2005, figure 7.
ISOTONIC_FROM = 1000
_GROUPS = 5
DRAWN_IN = 1e-4  # scores are drawn in by so much before their log-odds are taken: a forest says 0 and 1
_TAIL = 1e-3  # the slope, relative, beyond the outermost blocks of an isotonic curve


@dataclass(frozen=True)
class Sigmoid:
    """A logistic curve over the score's log-odds (Platt 1999); slope 1 and intercept 0 change nothing."""

    slope: float
    intercept: float

    def __call__(self, score: Array) -> Array:
        """Probabilities of scores, shape (n,)."""
        from scipy.special import expit

        found: Array = expit(self.slope * _log_odds(score) + self.intercept)
        return found


@dataclass(frozen=True)
class Isotonic:
    """Straight lines between the centres of an isotonic regression's blocks (Oron and Flournoy 2017).

    A step function would give all customers of a block the same probability, and so throw their order away.
    """

    scores: list[float]  # from 0 to 1, increasing
    probabilities: list[float]  # increasing

    def __call__(self, score: Array) -> Array:
        """Probabilities of scores, shape (n,)."""
        return np.interp(score, self.scores, self.probabilities)


Curve = Sigmoid | Isotonic


class CalibratedModel:
    """A fitted pipeline and the curve that its scores go through. Plain attributes: it is stored without pickle."""

    def __init__(self, pipeline: Any, curve: Curve) -> None:
        self.pipeline = pipeline
        self.curve = curve

    def predict_proba(self, inputs: pd.DataFrame) -> Array:
        """Probabilities of staying and of churning, shape (n, 2)."""
        probability = self.curve(np.asarray(self.pipeline.predict_proba(inputs), dtype="float64")[:, 1])
        return np.column_stack([1 - probability, probability])

    def predict(self, inputs: pd.DataFrame) -> NDArray[np.int64]:
        """Whether churning is the likelier, shape (n,)."""
        return (self.predict_proba(inputs)[:, 1] >= 0.5).astype("int64")


@dataclass(frozen=True)
class Calibration:
    """The curve that was chosen, and what every choice would have given."""

    method: Method
    curve: Curve | None  # None: scores are probabilities as they are
    held_out: Array  # the validation rows' probabilities, each by a curve that was fitted on other customers
    brier: dict[str, float]  # method to its cross-validated Brier score, of the methods that were looked at

    def apply(self, pipeline: Any) -> Any:
        """The model that is kept: a pipeline, calibrated."""
        return pipeline if self.curve is None else CalibratedModel(pipeline, self.curve)

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.brier.items())
        return f"{self.method} (Brier score on held-out customers: {scores})"


def choose(contract: Contract, customers: pd.Series[Any], labels: Array, score: Array) -> Calibration:
    """Fit the contract's kind of curve on validation rows, or with `auto` the kind that suits them.

    Kinds are compared by the Brier score that they reach on customers whom their curve was not fitted on (five groups).
    A kind with more freedom is taken only where it is better by more than one standard error, over customers, of the
    difference (the rule of Breiman et al. 1984); isotonic only from `ISOTONIC_FROM` rows on.

    Args:
        contract: `model.calibration`.
        customers: whose row it is, shape (n,).
        labels: 0 or 1, both there, shape (n,).
        score: what a model said that has not seen these rows, shape (n,).
    """
    asked = contract.model.calibration
    methods: list[Method] = ["none", "sigmoid", "isotonic"] if asked == "auto" else [asked]
    if asked == "auto" and len(labels) < ISOTONIC_FROM:
        methods.remove("isotonic")
    groups = hashed_groups(customers, _GROUPS)
    held_out = {method: _held_out(method, groups, labels, score) for method in methods}
    losses = {method: (probability - labels) ** 2 for method, probability in held_out.items()}
    chosen = methods[0]
    for method in methods[1:]:
        if _better(losses[method] - losses[chosen], customers):
            chosen = method
    curve = FITS[chosen](labels, score)
    return Calibration(
        method=chosen if curve is not None else "none",
        curve=curve,
        held_out=held_out[chosen],
        brier={method: float(loss.mean()) for method, loss in losses.items()},
    )


def _held_out(method: Method, groups: NDArray[np.int64], labels: Array, score: Array) -> Array:
    """Each row's probability by the curve of the other groups' customers."""
    found = score.copy()
    for group in np.unique(groups):
        there = groups == group
        curve = FITS[method](labels[~there], score[~there])
        if curve is not None:
            found[there] = curve(score[there])
    return found


def _better(difference: Array, customers: pd.Series[Any]) -> bool:
    """Whether a loss is lower by more than one standard error; a customer's rows are not independent of each other."""
    import pandas as pd

    mean = difference.mean()
    sums = np.bincount(pd.factorize(customers)[0], weights=difference - mean)
    return bool(mean < -np.sqrt((sums**2).sum()) / len(difference))


def _sigmoid(labels: Array, score: Array) -> Sigmoid | None:
    from sklearn.linear_model import LogisticRegression

    if not 0 < labels.sum() < len(labels):
        return None
    # hardly any penalty: it keeps the slope finite where scores separate the classes
    fitted = LogisticRegression(C=1e4, tol=1e-8, max_iter=1000).fit(_log_odds(score)[:, None], labels)
    slope = float(fitted.coef_[0, 0])
    return Sigmoid(slope, float(fitted.intercept_[0])) if slope > 0 else None


def _isotonic(labels: Array, score: Array) -> Isotonic | None:
    from sklearn.isotonic import IsotonicRegression

    if not 0 < labels.sum() < len(labels):
        return None
    margin = 1 / (len(labels) + 2)  # a block without a churner does not say never
    fitted = IsotonicRegression(y_min=margin, y_max=1 - margin).fit_transform(score, labels)
    levels, block = np.unique(fitted, return_inverse=True)
    centres = np.bincount(block, weights=score) / np.bincount(block)
    # a block at the very end is that end; else the curve goes on a little beyond the outermost block
    lowest = levels[0] if centres[0] <= 0 else levels[0] * (1 - _TAIL)
    highest = levels[-1] if centres[-1] >= 1 else levels[-1] + (1 - levels[-1]) * _TAIL
    inside = (centres > 0) & (centres < 1)
    return Isotonic(
        scores=[0.0, *centres[inside].tolist(), 1.0],
        probabilities=[float(lowest), *levels[inside].tolist(), float(highest)],
    )


FITS: dict[Method, Callable[[Array, Array], Curve | None]] = {
    "none": lambda *_: None,
    "sigmoid": _sigmoid,
    "isotonic": _isotonic,
}


def _log_odds(score: Array) -> Array:
    drawn_in = DRAWN_IN + (1 - 2 * DRAWN_IN) * score
    found: Array = np.log(drawn_in / (1 - drawn_in))
    return found

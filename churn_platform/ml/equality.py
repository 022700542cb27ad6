"""Equality: whether a compiled model answers as the model that it was made of.

The two are asked about many rows, made of the customers that the candidate was fitted and tested on and of what they
might have been: values missing, categories that nobody has heard of, and numbers exactly on the model's own thresholds
and on the next number below and above. There a comparison in another precision takes another turn.

The thresholds are those of the compiled model. That is no weakness: were one of them another than the original's, some
number on it or right beside it would take another turn in one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from churn_platform.ml import models
from churn_platform.ml.validation import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from churn_platform.contract import Contract
    from churn_platform.ml.compiled import CompiledModel
    from churn_platform.ml.probes import Answers

    Array = NDArray[np.float64]

EQUAL = "compiled_model_equals_the_model"
ROWS = 100_000
SAME = 1e-6  # probabilities that differ by no more are the same
_UNKNOWN = "a category that nobody has heard of"


REMEDY = (
    "The endpoint and batch scoring would serve the compiled model, so this version may not be champion. Materialize "
    "candidate_model again; if it happens again, ml/compiled.py does not know this kind of model."
)


@dataclass(frozen=True)
class Compiled:
    """What is asked of a compiled model."""

    answers: Answers
    threshold: float  # from this probability on, it predicts churn
    thresholds: Mapping[str, Array]  # of its numeric features, where it has any


def compiled(contract: Contract, model: CompiledModel) -> Compiled:
    """What is asked of a compiled model that reads the contract's features."""

    def answers(rows: pd.DataFrame) -> Array:
        inputs = models.frame(contract, rows)
        numbers = inputs[contract.numeric_features].to_numpy(dtype="float64")
        return model.probabilities(numbers, [inputs[name].tolist() for name in contract.categorical_features])

    return Compiled(answers, model.threshold, model.thresholds())


def rows(contract: Contract, known: pd.DataFrame, thresholds: Mapping[str, Array], many: int) -> pd.DataFrame:
    """Rows to compare on: a quarter as they are, a quarter with gaps, a quarter on thresholds, a quarter both.

    Args:
        contract: names the features.
        known: customers, with the contract's features.
        thresholds: of each numeric feature that the model has any for.
        many: how many rows to make.
    """
    random = np.random.default_rng(17)
    found = models.frame(contract, known).iloc[random.integers(len(known), size=many)].reset_index(drop=True)
    kind = np.arange(many) % 4
    for name in contract.feature_names:
        values = found[name].to_numpy(copy=True)
        moved, gone = (kind >= 2) & (random.random(many) < 0.5), (kind % 2 == 1) & (random.random(many) < 0.25)
        if contract.is_categorical(name):
            values[moved], values[gone] = _UNKNOWN, None
        else:
            if len(thresholds.get(name, ())):
                values[moved] = _beside(random.choice(thresholds[name], moved.sum()), random)
            values[gone] = np.nan
        found[name] = values
    return found


def _beside(values: Array, random: np.random.Generator) -> Array:
    """Each value, or the next number below or above it, in single or in double precision."""
    towards = random.choice([-np.inf, np.nan, np.inf], len(values))
    single = np.nextafter(values.astype("float32"), towards.astype("float32")).astype("float64")
    found = np.where(random.random(len(values)) < 0.5, single, np.nextafter(values, towards))
    return np.where(np.isnan(towards), values, found)


def compare(contract: Contract, compiled: Compiled, answers: Answers, threshold: float, known: pd.DataFrame) -> Finding:
    """The verdict on a compiled model.

    Args:
        contract: names the features.
        compiled: as it was loaded to be served.
        answers: the registered model.
        threshold: the registered one.
        known: customers that the model was fitted or tested on.
    """
    asked = rows(contract, known, compiled.thresholds, ROWS)
    ours, theirs = compiled.answers(asked), answers(asked)
    gaps = np.where(np.isfinite(ours), np.abs(ours - theirs), np.inf)
    decided = (ours >= compiled.threshold) != (theirs >= threshold)
    differ, decisions = int((gaps > SAME).sum()), int(decided.sum())
    place = int(gaps.argmax() if differ or not decisions else decided.argmax())
    words = f"the same {len(asked):,} answers, to {gaps.max():.0e}, and the same decisions"
    if differ or decisions:
        row = ", ".join(f"{name} = {_plain(value)}" for name, value in asked.iloc[place].items())
        words = (
            f"the compiled model answers differently: of {len(asked):,} rows, {differ:,} differ in probability "
            f"by more than {SAME:g}, and {decisions:,} in the decision; it says {ours[place]:.6f} instead of "
            f"{theirs[place]:.6f} where {row}"
        )
    found = {"rows": len(asked), "differ": differ, "decisions": decisions, "largest_difference": float(gaps.max())}
    return Finding(EQUAL, not differ and not decisions, words, REMEDY, found)


def _plain(value: Any) -> str:
    return "missing" if value is None or value != value else str(value)  # noqa: PLR0124 - NaN

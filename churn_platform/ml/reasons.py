"""Reasons: what moved a customer's score most, in words that a person understands.

Contributions come from `ml.explanations`, or from a compiled model; a value is said beside what is usual among the rows
that the model was fitted on. The endpoint says reasons too, so this module does without pandas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from churn_platform.contract import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from churn_platform.contract import Contract


@dataclass(frozen=True)
class Reason:
    """What one feature of one customer did to the score."""

    feature: str
    contribution: float  # above 0: it raised the score; in the model's own unit
    words: str


def reasons(
    contract: Contract,
    values: Mapping[str, Any],
    contributions: NDArray[np.float64],
    usual: Mapping[str, float],
    *,
    most: int = 3,
    only_raising: bool = True,
) -> list[Reason]:
    """The features that moved a customer's score most, the strongest first.

    Args:
        contract: names and describes the features.
        values: the customer's features by name; None or NaN where one is not known.
        contributions: what each did to the score, in the contract's order, shape (features,).
        usual: the median of each numeric feature; NaN where there is none.
        most: how many at most.
        only_raising: leave out what lowered the score.
    """
    order = np.argsort(-contributions if only_raising else -np.abs(contributions), kind="stable")[:most]
    names = contract.feature_names
    return [
        Reason(names[place], float(contributions[place]), words(contract, names[place], values[names[place]], usual))
        for place in order
        if (contributions[place] > 0 if only_raising else contributions[place] != 0)
    ]


def words(contract: Contract, name: str, value: Any, usual: Mapping[str, float]) -> str:
    """A feature's value in words, beside what is usual."""
    feature = contract.feature_definitions[name]
    described = contract.describe_feature(name)
    if value is None or value != value:  # noqa: PLR0124 - NaN is what differs from itself
        return f"{described}: not known"
    if contract.is_categorical(name):
        return f"{described}: {value}"
    beside = _beside(float(value), usual[name])
    noun = "contact" if feature.table == "contacts" else "purchase"
    if feature.description or feature.kind not in (Kind.recency_days, Kind.count):
        return f"{described}: {_number(value)}{beside}"
    if feature.kind is Kind.recency_days:
        return f"no {noun} for {_counted(round(value), 'day')}{beside}"
    many = _counted(round(value), noun) if value >= 0.5 else f"no {noun}"
    return f"{many} in the last {_counted(feature.window_days or 0, 'day')}{beside}"


def _beside(value: float, usual: float) -> str:
    if np.isnan(usual):
        return ""
    if usual <= 0 or value < 0:
        return f" (usual: {_number(usual)})"
    ratio = value / usual
    steps = [
        (0.28, "far below the usual"),
        (0.4, "a third of the usual"),
        (0.6, "half of the usual"),
        (0.9, "below the usual"),
        (1.1, "about the usual"),
        (1.7, "above the usual"),
        (2.4, "twice the usual"),
    ]
    said = next((said for below, said in steps if ratio < below), "far above the usual")
    return f", {said} {_number(usual)}"


def _number(value: float) -> str:
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def _counted(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"

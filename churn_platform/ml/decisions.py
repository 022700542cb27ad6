"""Decisions: whom to contact, by what that is expected to earn rather than by a bare probability.

A customer who would leave with probability p, and is worth w when kept, earns `acceptance * p * w - offer_cost` on
average when contacted (the contract's section `value`; compare Verbeke et al. 2012, "New insights into churn prediction
in the telecommunication sector: a profit driven data mining approach"). The figures are a team's own assumptions;
`ml.uplift` measures on customers left alone by lot what contacts really do.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from churn_platform.contract import given

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]
    Choice = NDArray[np.bool_]

_LEAST = 1e-6  # a threshold lies strictly between 0 and 1


def worth(contract: Contract, rows: pd.DataFrame) -> Array:
    """What each customer is worth when kept, in money, shape (n,).

    A customer of whom the contract's feature knows nothing, or nothing above 0, is worth 0.

    Raises:
        ValueError: the contract has no section `value`.
    """
    value = given(contract.value)
    if not isinstance(value.customer_value, str):
        return np.full(len(rows), float(value.customer_value))
    known = pd.to_numeric(rows[value.customer_value]).astype("float64").fillna(0.0).clip(lower=0.0)
    return np.asarray(known * value.value_factor)


def expected_profit(contract: Contract, probability: Array, worth: Array) -> Array:
    """What contacting each customer is expected to earn, in money, shape (n,). Raises ValueError as `worth` does."""
    value = given(contract.value)
    return value.acceptance * probability * worth - value.offer_cost


def realised_profit(contract: Contract, labels: Array, contacted: Choice, worth: Array) -> float:
    """What contacting some customers would have earned, in money, where it is known who left.

    Args:
        contract: its section `value`; that a share of the leavers accepts stays its assumption.
        labels: 1 for who left without being contacted, else 0; shape (n,).
        contacted: whom one would have contacted, shape (n,).
        worth: see `worth`.

    Raises:
        ValueError: the contract has no section `value`.
    """
    return float(expected_profit(contract, labels, worth)[contacted].sum())


def choose(contract: Contract, probability: Array, worth: Array, held_out: Choice | None = None) -> Choice:
    """Whom to contact: those of whom more is expected than it costs, best first, up to the capacity; shape (n,).

    Of equals the first comes first. Customers who are `held_out` are chosen like the others and take nothing of the
    capacity, since nobody contacts them.

    Raises:
        ValueError: the contract has no section `value`.
    """
    value = given(contract.value)
    profit = expected_profit(contract, probability, worth)
    chosen = profit > 0
    if value.capacity is not None:
        best_first = np.argsort(-profit, kind="stable")
        takes = chosen if held_out is None else chosen & ~held_out
        before: NDArray[np.int64] = np.cumsum(takes[best_first]) - takes[best_first]
        chosen[best_first[before >= value.capacity]] = False
    return chosen


def best_threshold(contract: Contract, labels: Array, probability: Array, worth: Array) -> float:
    """The probability from which on contacting earned most, on rows whose labels are known.

    It lies half-way between two probabilities that occur; of thresholds that earn the same, the highest. Without a
    section `value`, and where no threshold earns anything, it is the contract's own (`model.threshold`).

    Args:
        contract: its sections `value` and `model`.
        labels: 0 or 1, shape (n,); of validation rows, never of those that the model is judged on.
        probability: P(churn), shape (n,).
        worth: see `worth`; not looked at without a section `value`.
    """
    if contract.value is None or not len(labels):
        return contract.model.threshold
    said = np.sort(probability)[::-1]
    earned = earned_by_risk(contract, labels, probability, worth)[1:]
    last_of_equals = np.flatnonzero(np.r_[said[1:] < said[:-1], True])
    best = last_of_equals[np.argmax(earned[last_of_equals])]
    if earned[best] <= 0:
        return contract.model.threshold
    below = said[best + 1] if best + 1 < len(said) else said[best]
    return float(np.clip((said[best] + below) / 2, _LEAST, 1 - _LEAST))


def earned_by_risk(contract: Contract, labels: Array, probability: Array, worth: Array) -> Array:
    """What contacting the 0, 1, ..., n customers most at risk would have earned in all, in money; shape (n + 1,).

    Args:
        contract: its section `value`; that a share of the leavers accepts stays its assumption.
        labels: 1 for who left without being contacted, else 0; shape (n,).
        probability: P(churn), shape (n,).
        worth: see `worth`.

    Raises:
        ValueError: the contract has no section `value`.
    """
    order = np.argsort(-probability, kind="stable")
    return np.concatenate([np.zeros(1), np.cumsum(expected_profit(contract, labels, worth)[order])])


def held_out(contract: Contract, window: str, customers: Iterable[object]) -> Choice:
    """Who of some customers is left alone by lot in a window: the same on every run, another draw in every window.

    The lot is a hash of contract, window and customer, so nothing that is known of a customer has a part in it.

    Raises:
        ValueError: the contract has no section `value`.
    """
    share = given(contract.value).hold_out

    def lot(customer: object) -> float:
        digest = hashlib.sha256(f"{contract.name}\n{window}\n{customer}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64

    return np.fromiter((lot(customer) < share for customer in customers), dtype="bool")


def profit_curve(contract: Contract, probability: Array, worth: Array, labels: Array | None = None) -> Array:
    """What contacting the best 0, 1, ..., n customers earns in all, best first; shape (n + 1,).

    Expected, or with `labels` what it would have earned. Raises ValueError as `worth` does.
    """
    best_first = np.argsort(-expected_profit(contract, probability, worth), kind="stable")
    earned = expected_profit(contract, probability if labels is None else labels, worth)[best_first]
    return np.concatenate([np.zeros(1), np.cumsum(earned)])

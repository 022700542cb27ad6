"""What contacting customers did: the churn of those who were contacted beside that of those who were left alone.

Where a lot decided who was left alone, the difference is what contacts do. Where somebody chose (a campaign), it is
also who was chosen: comparing like with like takes that out as far as the features know of it, and no further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.ml.metrics import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]
    Choice = NDArray[np.bool_]

STRATA = 5  # Cochran 1968: they remove about nine tenths of the bias that the score knows of


class NotComparableError(ValueError):
    """There is nobody to compare with."""


@dataclass(frozen=True)
class Effect:
    """What contacts did to churn."""

    treated: int
    control: int
    treated_rate: float  # the share that churned; of control, weighted as the treated lie in the strata
    control_rate: float
    saved: Interval  # control rate less treated rate: above 0, contacts kept customers
    left_out: int  # treated rows in strata without anybody to compare with

    @property
    def acceptance(self) -> float:
        """The share of those about to leave that stayed: what the contract's `acceptance` assumes."""
        return self.saved.value / self.control_rate if self.control_rate > 0 else float("nan")

    def words(self, confidence: float, assumed: float, earned: Interval) -> str:
        """For people, beside the acceptance that the contract assumes and the profit per customer."""
        accepted = "" if np.isnan(self.acceptance) else f", {self.acceptance:.0%} of those who would have left"
        found = (
            f"Of {self.treated:,} customers on lists that were sent, {self.treated_rate:.1%} churned; of "
            f"{self.control:,} who were held out by lot, {self.control_rate:.1%}. Contacts avoided {self.saved} "
            f"({confidence:.0%} interval){accepted}; the contract assumes {assumed:.0%}. A customer on a list earned "
            f"{earned} in money."
        )
        nobody = f" {self.left_out:,} customers on lists without a hold-out have nobody to be compared with."
        return found + (nobody if self.left_out else "")


def wilson(churned: float, rows: float, confidence: float) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927)."""
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    share = churned / rows
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def effect(labels: Array, treated: Choice, strata: NDArray[Any] | None = None, confidence: float = 0.95) -> Effect:
    """The difference of two churn rates, with its interval.

    The interval is Newcombe's (1998, "Interval estimation for the difference between independent proportions",
    method 10). Over several strata, such as lists with hold-outs of their own, rates are weighted as the treated lie in
    them and the strata's Wilson intervals are combined as in Zou and Donner (2008); with one stratum that is
    Newcombe's.

    Args:
        labels: 1 for churned, else 0; shape (n,). Rows are taken to be independent of each other.
        treated: who was to be contacted, whether it was done or not (intention to treat); shape (n,).
        strata: within which rows are compared, shape (n,); default all with all.
        confidence: of the interval.

    Raises:
        NotComparableError: no stratum holds both.
    """
    shares = _shares(treated, np.zeros(len(labels)) if strata is None else strata)
    rates, spread = [], []
    for part in (treated, ~treated):
        rate, below, above = 0.0, 0.0, 0.0
        for chosen, weight in shares:
            rows, churned = float((chosen & part).sum()), float(labels[chosen & part].sum())
            low, high = wilson(churned, rows, confidence)
            rate += weight * churned / rows
            below += (weight * (churned / rows - low)) ** 2
            above += (weight * (high - churned / rows)) ** 2
        rates.append(rate)
        spread.append((below, above))
    (treated_below, treated_above), (control_below, control_above) = spread
    value = rates[1] - rates[0]
    compared = sum(int((chosen & treated).sum()) for chosen, _ in shares)
    return Effect(
        treated=compared,
        control=sum(int((chosen & ~treated).sum()) for chosen, _ in shares),
        treated_rate=rates[0],
        control_rate=rates[1],
        saved=Interval(
            value,
            value - float(np.sqrt(control_below + treated_above)),
            value + float(np.sqrt(control_above + treated_below)),
        ),
        left_out=int(treated.sum()) - compared,
    )


def _shares(treated: Choice, strata: NDArray[Any]) -> list[tuple[Choice, float]]:
    """The rows of each stratum that holds both, and its share of the treated."""
    both = [
        chosen
        for stratum in sorted(set(strata.tolist()))
        if 0 < treated[chosen := strata == stratum].sum() < chosen.sum()
    ]
    if not both:
        raise NotComparableError("nobody was treated, or nobody was left alone, wherever one looks.")
    whole = sum(int(treated[chosen].sum()) for chosen in both)
    return [(chosen, int(treated[chosen].sum()) / whole) for chosen in both]


def difference(
    outcome: Array,
    treated: Choice,
    customers: pd.Series[Any],
    strata: NDArray[Any] | None = None,
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 7,
) -> Interval:
    """The mean outcome of the treated less that of the others, with a percentile bootstrap interval (Efron 1979).

    Customers are drawn, not rows: a customer's rows are not independent of each other. The strata stay as they are.

    Args:
        outcome: such as what was earned of each, in money; shape (n,).
        treated: as in `effect`, shape (n,).
        customers: whose row it is, shape (n,).
        strata: as in `effect`.
        confidence: of the interval.
        draws: how many samples are drawn.
        seed: of the draws.

    Raises:
        NotComparableError: no stratum holds both.
    """
    strata = np.zeros(len(outcome)) if strata is None else strata
    cells = [chosen & part for chosen, _ in _shares(treated, strata) for part in (treated, ~treated)]
    cell = np.full(len(outcome), -1)
    for place, rows in enumerate(cells):
        cell[rows] = place
    used = cell >= 0
    cell, outcome = cell[used], outcome[used]
    who, names = pd.factorize(customers[used])

    def of(weight: Array) -> float:
        count = np.bincount(cell, weight, len(cells)).reshape(-1, 2)
        total = np.bincount(cell, weight * outcome, len(cells)).reshape(-1, 2)
        there = (count > 0).all(axis=1)  # a draw may empty a cell
        if not there.any():
            return float("nan")
        means = total[there] / count[there]
        share = count[there, 0] / count[there, 0].sum()
        return float(share @ (means[:, 0] - means[:, 1]))

    random = np.random.default_rng(seed)
    found = [
        of(np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))[who].astype("float64"))
        for _ in range(draws)
    ]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return Interval(of(np.ones(len(outcome))), float(low), float(high))


@dataclass(frozen=True)
class Observed:
    """Those whom a campaign reached beside those whom it did not, before and after comparing like with like."""

    contacted: int
    others: int
    contacted_rate: float
    others_rate: float
    plain: Interval  # churn of the others less that of the contacted, as they are
    alike: Interval  # the same within strata of equal propensity to be contacted
    left_out: int  # contacted rows whose stratum holds nobody to compare with

    def words(self, confidence: float) -> str:
        """For people, with what it does not say."""
        return (
            f"**An observation, no experiment.** Of {self.contacted:,} observations with a contact within the label's "
            f"horizon, {self.contacted_rate:.1%} churned; of {self.others:,} without one, {self.others_rate:.1%}: "
            f"{self.plain} of churn less. Whoever sent these contacts chose whom to send them to, and often that is "
            f"the good customers. Among customers who were as likely to be contacted, by their features, it is "
            f"**{self.alike}** ({confidence:.0%} interval, by customer). What else decided is still in it: only a "
            "hold-out drawn by lot can tell what contacts do."
        )


def observed(
    labels: Array,
    contacted: Choice,
    propensity: Callable[[], Array],
    customers: pd.Series[Any],
    confidence: float = 0.95,
) -> Observed:
    """Compare those whom somebody chose to contact with the others: by themselves, and within propensity strata.

    The propensity score is cut into fifths of the contacted (Rosenbaum and Rubin 1984). Intervals draw customers
    (bootstrap) and hold the strata fixed. It is an observation and no experiment: what decided who was contacted and is
    no feature remains in it.

    Args:
        labels: 1 for churned, else 0; shape (n,).
        contacted: shape (n,).
        propensity: gives the probability of being contacted, shape (n,), by a model that saw no label.
        customers: whose row it is, shape (n,).
        confidence: of the intervals.

    Raises:
        NotComparableError: all were contacted, or nobody was.
    """
    plain = difference(labels, contacted, customers, confidence=confidence)
    score = propensity()
    cuts = np.quantile(score[contacted], np.linspace(0, 1, STRATA + 1)[1:-1])
    strata = np.searchsorted(cuts, score, side="right")
    alike = difference(labels, contacted, customers, strata, confidence=confidence)
    compared = sum(int(contacted[chosen].sum()) for chosen, _ in _shares(contacted, strata))
    return Observed(
        contacted=int(contacted.sum()),
        others=int((~contacted).sum()),
        contacted_rate=float(labels[contacted].mean()),
        others_rate=float(labels[~contacted].mean()),
        plain=_turned(plain),
        alike=_turned(alike),
        left_out=int(contacted.sum()) - compared,
    )


def _turned(difference: Interval) -> Interval:
    """The same with the other sign: churn that was avoided, instead of churn that came."""
    return Interval(-difference.value, -difference.high, -difference.low)


def propensity(contract: Contract, inputs: pd.DataFrame, contacted: Choice) -> Array:
    """The probability of being contacted, given the features: a logistic regression on the model's own encoding.

    Args:
        contract: names the features.
        inputs: `models.frame(contract, ...)`.
        contacted: shape (n,).
    """
    from churn_platform.ml import models

    spec = contract.model.model_copy(update={"family": "logistic_regression", "params": {}})
    fitted = models.fit(contract.model_copy(update={"model": spec}), inputs, contacted.astype("int64"))
    return models.probabilities(fitted, inputs)

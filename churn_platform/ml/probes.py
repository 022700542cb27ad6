"""Probes: what the data of a candidate gives away, and how the candidate behaves when it is asked on purpose.

The leakage probes look at the rows that a model was fitted and tested on, and need no model. The behavioural ones are
invariance and directional tests (Ribeiro et al. 2020, CheckList): they change the input in a way whose effect is known
beforehand and look at the answer. Each returns a verdict; nothing here decides what is done about it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import LABEL, SNAPSHOT_TIME
from churn_platform.ml.metrics import fast_roc_auc
from churn_platform.ml.models import frame
from churn_platform.ml.validation import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]
    Answers = Callable[[pd.DataFrame], Array]  # rows of a training set to P(churn), shape (n,)

GIVES_AWAY = "no_feature_gives_the_answer_away"
ID = "no_feature_is_an_id"
UNSEEN = "test_rows_are_unseen"
DIRECTION = "reacts_in_the_right_direction"
INVARIANT = "ids_and_order_change_nothing"
BUDGET = "fits_the_latency_and_size_budget"

_ROWS = 20_000  # that a probe looks at; more would cost time and change no verdict
_BINS = 50
SAME = 1e-6  # what the same question may be answered differently by: sums are rounded in another order
_SINGLES = 20  # customers who are asked about one at a time


# ------------------------------------------------------------------------------------------------------- the data


def gives_away(contract: Contract, fitted: pd.DataFrame, tested: pd.DataFrame) -> Finding:
    """Whether a single feature tells nearly everything, as a copy of the label in disguise does.

    A feature is cut into bins of equal size, a missing value is a bin of its own; the churn rate of each bin among the
    fitted rows is used to rank the tested ones. So a leak shows whatever its shape, and chance does not.

    Args:
        contract: names the features; `gates.max_single_feature_auc` is the bound.
        fitted: rows that the model was fitted on, with their labels.
        tested: rows of the test window, with both kinds of labels.
    """
    fitted, tested = _sample(fitted), _sample(tested)
    labels = tested[LABEL].to_numpy(dtype="float64")
    bound = contract.gates.max_single_feature_auc
    scores = {name: fast_roc_auc(labels, _rates(contract, name, fitted, tested)) for name in contract.feature_names}
    best = max(scores, key=lambda name: scores[name])
    found = sorted((name for name in scores if scores[name] > bound), key=lambda name: -scores[name])
    words = (
        f"{', '.join(f'{name} alone has a ROC AUC of {scores[name]:.4f}' for name in found)}; "
        f"more than {bound} is not to be believed"
        if found
        else f"the strongest feature alone, {best}, has a ROC AUC of {scores[best]:.4f}; up to {bound} is believed"
    )
    copies = [name for name in found if _is_label(tested[name], labels)]
    if copies:
        words = f"{', '.join(copies)} is the label itself; {words}"
    remedy = (
        f"Find out when {' and '.join(found) or 'it'} becomes known: most likely after the customer has left, so that "
        "it tells the outcome. Remove it from features in contract.yaml, or raise gates.max_single_feature_auc if it "
        "is known in time."
    )
    return Finding(GIVES_AWAY, not found, words, remedy, {"feature": best, "roc_auc": scores[best], "maximum": bound})


def _rates(contract: Contract, name: str, fitted: pd.DataFrame, tested: pd.DataFrame) -> Array:
    """The churn rate of the bin in which each tested row's value lies."""
    labels = fitted[LABEL].to_numpy(dtype="float64")
    if contract.is_categorical(name):
        known, values = pd.factorize(fitted[name].astype(str))
        asked = pd.Index(values).get_indexer(pd.Index(tested[name].astype(str)))
        asked = np.where(asked < 0, len(values), asked)
        bins = len(values) + 1
    else:
        numbers, others = (_numbers(rows[name]) for rows in (fitted, tested))
        there = numbers[~np.isnan(numbers)]
        edges = np.unique(np.quantile(there, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(there) else np.zeros(0)
        bins = len(edges) + 2
        known, asked = (
            np.where(np.isnan(part), bins - 1, np.searchsorted(edges, part, side="right")) for part in (numbers, others)
        )
    rate, weight = labels.mean(), 5.0  # a bin with few rows says little
    counts = np.bincount(known, minlength=bins)
    churned = np.bincount(known, weights=labels, minlength=bins)
    found: Array = ((churned + rate * weight) / (counts + weight))[asked]
    return found


def _is_label(values: pd.Series[Any], labels: Array) -> bool:
    """Whether a feature has two values, one for each label."""
    codes = pd.factorize(values)[0]
    if len(np.unique(codes)) != 2:
        return False
    agree = float(np.mean((codes == codes[0]) == (labels == labels[0])))
    return max(agree, 1 - agree) > 0.99


def is_id(contract: Contract, fitted: pd.DataFrame, tested: pd.DataFrame) -> Finding:
    """Whether a feature names the customer: a model learns it by heart and knows nothing of anybody new.

    A feature is an id where it says the same as the customer's key; or where nearly every customer has a value of their
    own that never changes. Without a second observation of anybody, the latter is judged of text only: of a number it
    would be usual.

    Args:
        contract: names features and key.
        fitted: rows that the model was fitted on.
        tested: rows of the test window.
    """
    rows = pd.concat([fitted, tested])
    key = rows[contract.customer.name].astype(str)
    customers = int(key.nunique())
    seen_again = key.duplicated(keep=False)
    found = []
    for name in contract.feature_names:
        values = rows[name]
        there = values.notna().to_numpy()
        if there.sum() < 2:
            continue
        text = values.astype(str).str.removesuffix(".0")
        if float((text == key)[there].mean()) > 0.99:
            found.append(f"{name} is the customer's key")
            continue
        once = pd.DataFrame({"key": key[there], "value": text[there]}).drop_duplicates()
        own = once["value"].nunique() > 0.95 * customers and len(once) <= 1.05 * once["key"].nunique()
        judged = contract.is_categorical(name) or float(seen_again.mean()) > 0.5
        if own and judged and customers > 20:
            found.append(f"{name} has a value of its own for each customer, which never changes")
    return Finding(
        ID,
        not found,
        "; ".join(found) or f"none of {len(contract.feature_names)} features names one of {customers:,} customers",
        "Remove it from the features in contract.yaml: a model learns customers by heart that way.",
        {"customers": customers},
    )


def unseen(contract: Contract, fitted: pd.DataFrame, tested: pd.DataFrame, by: str) -> Finding:
    """Whether the test rows are new: no row of them, and no copy under another name, is among the fitted ones.

    Args:
        contract: names features and key; `gates.max_twins` is the share of test rows that may have a twin.
        fitted: rows that the model was fitted on.
        tested: rows of the test window.
        by: how they were divided, `time` or `customer`.
    """
    key = contract.customer.name
    both = pd.concat([fitted, tested])
    same = both[key].astype(str).str.strip().str.casefold()
    twice = int(pd.DataFrame({"key": same, "at": both[SNAPSHOT_TIME]}).duplicated().sum())
    problems = [f"{twice:,} rows stand twice for the same customer and time"] if twice else []
    first, second = same.iloc[: len(fitted)], same.iloc[len(fitted) :]
    if by == "customer" and (shared := len(set(first) & set(second))):
        problems.append(f"{shared:,} customers are among the fitted and the tested rows")
    twins = _twins(contract, fitted, tested)
    if twins is not None and twins > contract.gates.max_twins:
        problems.append(
            f"{twins:.0%} of the test rows equal, in every feature, a row of another customer; "
            f"up to {contract.gates.max_twins:.0%} is believed"
        )
    judged = (
        f"{twins:.1%} have a twin"
        if twins is not None
        else "whether they have twins is not judged: the features hold too few different values to tell"
    )
    return Finding(
        UNSEEN,
        not problems,
        "; ".join(problems) or f"none of {len(tested):,} test rows is among the {len(fitted):,} fitted ones; {judged}",
        "The test would be of rows that the model knows by heart. Look for rows that were copied in the source, under "
        "the same or another id (`unique` and `max_repeated` of the table in contract.yaml refuse them), and train "
        "again.",
        {"twice": twice, **({} if twins is None else {"twins": twins})},
    )


def _twins(contract: Contract, fitted: pd.DataFrame, tested: pd.DataFrame) -> float | None:
    """The share of test rows that equal a row of another customer in all features.

    Asked only of rows with a broken number in some feature, such as a sum of money: customers who share a few whole
    numbers are no copies. None where fewer than half of the test rows have one.
    """
    numbers = contract.numeric_features
    broken = np.zeros(len(tested), dtype=bool)
    for name in numbers:
        values = _numbers(tested[name])
        with np.errstate(invalid="ignore"):
            broken |= np.isfinite(values) & (values != np.round(values))
    if broken.mean() < 0.5:
        return None
    both = pd.concat([fitted, tested])
    features = pd.util.hash_pandas_object(frame(contract, both), index=False).to_numpy()
    owners = pd.Series(pd.factorize(both[contract.customer.name].astype(str))[0])
    others = owners.groupby(features).transform("nunique").to_numpy() > 1
    return float(others[len(fitted) :][broken].mean())


# -------------------------------------------------------------------------------------------------- the behaviour


def reacts(contract: Contract, rows: pd.DataFrame, answers: Answers) -> Finding:
    """Whether the mean probability goes the right way when features are moved by a standard deviation.

    Features of which a direction is known are first moved together, as a customer becomes more active: one moved alone
    may rightly do the opposite (more purchases in 180 days and no more in the last 30 is a customer who tires). Then
    singly: the time since the last purchase, and whatever the contract states itself. Moved values stay in the range
    that the rows span. Going the wrong way by no more than `gates.direction_tolerance` is nothing.
    """
    expected = contract.directions
    if not expected:
        words = "no feature's direction is known: state some under gates.directions in contract.yaml"
        return Finding(DIRECTION, True, f"nothing to judge: {words}")
    rows = _sample(rows)
    before = float(answers(rows).mean())
    tolerance = contract.gates.direction_tolerance
    singly = [name for name in expected if name in contract.gates.directions or expected[name] > 0]
    moves = {"all that speaks for staying": list(expected)} | {name: [name] for name in singly}
    changes: dict[str, float] = {}
    for what, names in moves.items():
        moved = rows.assign(**{name: _moved(rows[name], -expected[name]) for name in names})
        changes[what] = float(answers(moved).mean()) - before
    wrong = {what: change for what, change in changes.items() if not change <= tolerance}
    if wrong:
        words = "; ".join(
            f"{_moves(what, expected)}, the mean probability of leaving rises by {change:.4f}"
            for what, change in wrong.items()
        )
    else:
        words = "; ".join(f"{_moves(what, expected)}: {change:+.4f}" for what, change in changes.items())
    return Finding(
        DIRECTION,
        not wrong,
        words,
        "The model has learnt the opposite of what is known. Look for flipped labels, a column whose sign or unit "
        "changed, and too few rows; if the world really is so, say so under gates.directions in contract.yaml.",
        {what: round(change, 6) for what, change in changes.items()},
    )


def _moves(what: str, expected: dict[str, int]) -> str:
    return (
        f"with {'less' if expected.get(what, -1) > 0 else 'more'} {what}"
        if what in expected
        else f"with more of {what}"
    )


def _moved(values: pd.Series[Any], sign: int) -> pd.Series[Any]:
    """Each value a standard deviation higher or lower, within the range that there is; what is missing stays so."""
    numbers = pd.to_numeric(values).astype("float64")
    step = numbers.std(ddof=0)
    return (numbers + sign * (0.0 if np.isnan(step) else step)).clip(numbers.min(), numbers.max())


def invariant(contract: Contract, rows: pd.DataFrame, answers: Answers, seed: int = 7) -> Finding:
    """Whether a customer's probability hangs on the customer alone: not on the id, the order, the company or the time.

    Asked are the same rows again, in another order, with the ids shuffled, half of them, and some one at a time.
    """
    rows = _sample(rows).reset_index(drop=True)
    random = np.random.default_rng(seed)
    said = answers(rows)
    order = random.permutation(len(rows))
    half = np.sort(order[: max(1, len(rows) // 2)])
    singles = order[:_SINGLES]
    key = contract.customer.name
    again = {
        "asked again": (answers(rows), said),
        "in another order": (answers(rows.iloc[order]), said[order]),
        "with the ids shuffled": (answers(rows.assign(**{key: rows[key].to_numpy()[order]})), said),
        "asked with half of the customers": (answers(rows.iloc[half]), said[half]),
        "asked one at a time": (np.concatenate([answers(rows.iloc[[place]]) for place in singles]), said[singles]),
    }
    gaps = {how: float(np.abs(now - then).max()) for how, (now, then) in again.items()}
    changed = {how: gap for how, gap in gaps.items() if not gap <= SAME}
    words = "; ".join(f"{how}, probabilities change by up to {gap:.4f}" for how, gap in changed.items())
    return Finding(
        INVARIANT,
        not changed,
        words or f"{len(rows):,} customers: the same answers {', '.join(again)}",
        "A customer's risk would depend on who else is asked about. Look for a step that is fitted on the rows that "
        "are scored, or that draws at random.",
        gaps,
    )


def budget(contract: Contract, rows: pd.DataFrame, answers: Answers, megabytes: float | None) -> Finding:
    """Whether one customer's answer comes in time, and the stored model is small enough.

    Args:
        contract: `gates.max_latency_ms` and `gates.max_size_mb`.
        rows: customers to ask about, one at a time; the median of them counts.
        answers: the model.
        megabytes: the size of the stored model; None where it is not known.
    """
    gates = contract.gates
    took = []
    for place in range(min(_SINGLES, len(rows))):
        began = time.perf_counter()
        answers(rows.iloc[[place]])
        took.append((time.perf_counter() - began) * 1000)
    median = float(np.median(took)) if took else float("nan")
    known = megabytes is not None
    size = f"{megabytes:.1f} MB" if known else "of unknown size"
    words = (
        f"one customer takes {median:.1f} ms (asked for is at most {gates.max_latency_ms:g}); the model is {size} (at "
        f"most {gates.max_size_mb:g})"
    )
    return Finding(
        BUDGET,
        known and median <= gates.max_latency_ms and megabytes <= gates.max_size_mb,  # type: ignore[operator]
        words,
        "Take fewer or smaller trees (model.params), or raise gates.max_latency_ms or gates.max_size_mb in "
        "contract.yaml if the endpoint can bear it.",
        {"latency_ms": median, **({"megabytes": megabytes} if known else {})},
    )


def _numbers(values: pd.Series[Any]) -> Array:
    found: Array = pd.to_numeric(values).to_numpy(dtype="float64", na_value=np.nan)
    return found


def _sample(rows: pd.DataFrame, seed: int = 7) -> pd.DataFrame:
    return rows if len(rows) <= _ROWS else rows.sample(_ROWS, random_state=seed)

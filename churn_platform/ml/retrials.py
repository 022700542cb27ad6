"""Training again on purpose, to judge a candidate: without the test window, and as of earlier windows.

A model that was fitted on the test window, calibrated on it, or made of other rows than it says, cannot be told from a
good one by its answers there. But training is deterministic: the same recipe on the rows that the candidate says it
was made of gives the same model, so a difference gives it away.

And a candidate that is as good as the champion on one window may be so by the season. So its recipe is tried as of
earlier windows as well (walk-forward, Tashman 2000): trained on what was known before each of them and compared with
the champion there, on windows that the champion was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import LABEL, SNAPSHOT_TIME
from churn_platform.ml.splits import NotEnoughDataError, Splits, window_keys
from churn_platform.ml.training import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from churn_platform.contract import Contract
    from churn_platform.ml.probes import Answers
    from churn_platform.ml.training import Trained

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Walk:
    """What recipe and champion said of the customers of earlier windows, one array entry a customer and window."""

    windows: list[str]  # oldest first; those that could be judged
    place: NDArray[np.int64]  # which of them
    customers: pd.Series[str]
    labels: Array
    recipe: Array
    champion: Array
    skipped: dict[str, str] = field(default_factory=dict)  # window to why it could not be judged


def again(contract: Contract, rows: pd.DataFrame, parameters: dict[str, Any] | None) -> Trained:
    """What becomes of the recipe when it is trained once more, without the test rows.

    Args:
        contract: says how the rows are divided and what is trained.
        rows: the training set that the candidate was made of.
        parameters: those of the candidate, so that none are searched for.

    Raises:
        NotEnoughDataError: the rows do not suffice.
    """
    return train(contract, rows, parameters=parameters)


def walk(  # noqa: PLR0917 - a recipe, its rows, and what it is compared with
    contract: Contract,
    rows: pd.DataFrame,
    parts: Splits,
    parameters: dict[str, Any] | None,
    champion: Answers,
    unseen_from: pd.Timestamp,
    say: Callable[[str], None] = lambda _: None,
) -> Walk:
    """Try the recipe as of the last windows before the test window, `gates.walk_forward.windows` of them.

    Args:
        contract: says how many, and how many rows at most are looked at for it.
        rows: the training set.
        parts: how it is divided for the candidate.
        parameters: those of the candidate.
        champion: what it is compared with.
        unseen_from: the first observation that the champion was not fitted on.
        say: told what is going on.
    """
    asked = contract.gates.walk_forward
    one = contract.model_copy(update={"model": contract.model.model_copy(update={"test_windows": 1})})
    if len(rows) > asked.max_rows:
        share = asked.max_rows / len(rows)
        say(f"walk-forward: of {len(rows):,} rows those of {share:.0%} of the customers are looked at")
        rows = rows[_share_of(rows[contract.customer.name], share)]
    keys = window_keys(contract, rows[SNAPSHOT_TIME])
    first_tested = window_keys(contract, parts.test[SNAPSHOT_TIME]).min()
    earlier = sorted(key for key in keys.unique() if key < first_tested)[-asked.windows :] if asked.windows else []
    judged: list[tuple[str, pd.DataFrame, Array, Array]] = []
    skipped = {}
    for key in earlier:
        there = rows[keys == key]
        if there[SNAPSHOT_TIME].min() < unseen_from:
            skipped[key] = "the champion was fitted on it"
            continue
        try:
            tried = train(one, rows[keys <= key], parameters=parameters)
        except NotEnoughDataError:
            skipped[key] = "too few labels were known before it to train on"
            continue
        tested = tried.splits.test
        if tested[LABEL].nunique() < 2:
            skipped[key] = "all of its customers have the same label"
            continue
        judged.append((key, tested, tried.test_probability, champion(tested)))
        say(f"walk-forward: tried as of {key}")
    tested = pd.concat([part[1] for part in judged]) if judged else rows.iloc[:0]
    return Walk(
        windows=[part[0] for part in judged],
        place=np.repeat(np.arange(len(judged)), [len(part[1]) for part in judged]),
        customers=tested[contract.customer.name].astype(str),
        labels=tested[LABEL].to_numpy(dtype="float64"),
        recipe=np.concatenate([part[2] for part in judged]) if judged else np.zeros(0),
        champion=np.concatenate([part[3] for part in judged]) if judged else np.zeros(0),
        skipped=skipped,
    )


def _share_of(customers: pd.Series[Any], share: float) -> NDArray[np.bool_]:
    """A share of the customers, the same ones always, with all their rows."""
    hashed = pd.util.hash_pandas_object(customers.astype(str), index=False).to_numpy().astype("uint64")
    found: NDArray[np.bool_] = hashed % np.uint64(10_000) < np.uint64(round(share * 10_000))
    return found

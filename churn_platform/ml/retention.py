"""The retention list: whom to contact in a window, in which order, why, and whom to leave alone by lot.

And the other side of it: which outcomes say nothing about a score any more, because somebody acted on it. A customer
who was contacted and stayed is no false alarm. Who was held out stands in for those who were contacted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from churn_platform.contract import (
    ARM,
    CONTACTED,
    CONTACTED_AT,
    MATURED_AT,
    MODEL_VERSION,
    PREDICTION,
    PROBABILITY,
    PROFIT,
    RANK,
    REASONS,
    SNAPSHOT_TIME,
    WORTH,
    given,
)
from churn_platform.engine import identifier
from churn_platform.ml import decisions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]

# The arms of a list, and those who were contacted though no list said so.
CONTACT, HOLD_OUT, UNLISTED = "contact", "hold_out", "unlisted"

WEIGHT = "_weight"


@dataclass(frozen=True)
class RetentionList:
    """Who was chosen, best first, and what became of the others."""

    rows: pd.DataFrame  # see `columns`
    considered: int  # customers at risk who may be contacted
    suppressed: int
    resting: int
    profit_curve: Array  # see `decisions.profit_curve`, of those considered

    @property
    def contacted(self) -> pd.DataFrame:
        """The rows of those to contact."""
        return self.rows[self.rows[ARM] == CONTACT]


def columns(contract: Contract) -> dict[str, tuple[str, str]]:
    """Name to type and meaning of the columns of a list."""
    return {
        RANK: ("integer", "1 is the customer of whom most is expected"),
        contract.customer.name: (contract.customer.type, "the customer"),
        SNAPSHOT_TIME: ("timestamp", "as of when the customer was scored"),
        PROBABILITY: ("float", "of churning within the label's horizon"),
        PREDICTION: ("string", "High Risk from the model's threshold on, else Low Risk"),
        WORTH: ("float", "what the customer is worth when kept, in money"),
        PROFIT: ("float", "what contacting the customer is expected to earn, in money"),
        ARM: ("string", f"{CONTACT}, or {HOLD_OUT}: left alone by lot, to compare with"),
        REASONS: ("string", "what raised the probability most, in words"),
        MODEL_VERSION: ("string", "the model that said so"),
    }


def build(
    contract: Contract,
    window: str,
    scored: pd.DataFrame,
    *,
    suppressed: Collection[object] = (),
    resting: Collection[object] = (),
    explain: Callable[[pd.DataFrame], list[str]] = lambda rows: [""] * len(rows),
) -> RetentionList:
    """The list of a window.

    Args:
        contract: its section `value`.
        window: the window's key; the lot depends on it.
        scored: the customers at risk: key, snapshot_time, features, probability, prediction and model version.
        suppressed: customers who are never contacted.
        resting: customers who were contacted, or held out, too short a time ago.
        explain: why each of some rows of `scored` is at risk, in words; asked for those who are chosen only.

    Raises:
        ValueError: the contract has no section `value`.
    """
    name = contract.customer.name
    never = scored[name].isin(list(suppressed)).to_numpy()
    rests = scored[name].isin(list(resting)).to_numpy() & ~never
    rows = scored[~never & ~rests].sort_values(name, ignore_index=True)
    probability = rows[PROBABILITY].to_numpy(dtype="float64")
    worth = decisions.worth(contract, rows)
    lot = decisions.held_out(contract, window, rows[name])
    profit = decisions.expected_profit(contract, probability, worth)
    chosen = decisions.choose(contract, probability, worth, lot)
    order = np.flatnonzero(chosen)[np.argsort(-profit[chosen], kind="stable")]
    best = rows.iloc[order]
    found = {
        RANK: np.arange(1, len(order) + 1),
        name: best[name].to_numpy(),
        SNAPSHOT_TIME: best[SNAPSHOT_TIME].to_numpy(),
        PROBABILITY: probability[order],
        PREDICTION: best[PREDICTION].to_numpy(),
        WORTH: worth[order],
        PROFIT: profit[order],
        ARM: np.where(lot[order], HOLD_OUT, CONTACT),
        REASONS: explain(best) if len(best) else [],
        MODEL_VERSION: best[MODEL_VERSION].to_numpy(),
    }
    return RetentionList(
        rows=pd.DataFrame(found),
        considered=len(rows),
        suppressed=int(never.sum()),
        resting=int(rests.sum()),
        profit_curve=decisions.profit_curve(contract, probability, worth),
    )


# ------------------------------------------------------------------------------------------- what was done, in SQL


def resting(contract: Contract, window: str) -> str:
    """SQL for the customers whom the list of a window leaves alone, from a view `treatments` and the instant `?`."""
    days = given(contract.value).rest_days
    return (
        f"SELECT DISTINCT {identifier(contract.customer.name)} FROM treatments WHERE _window < '{window}' "
        f"AND ({CONTACTED} OR {ARM} = '{HOLD_OUT}') AND {CONTACTED_AT} > ?::TIMESTAMPTZ - INTERVAL {days} DAY"
    )


def _acted_on(contract: Contract, label: str, treatment: str) -> str:
    """SQL: a treatment may have had a part in a label. It works until the customer may be contacted again."""
    days = contract.value.rest_days if contract.value is not None else 0
    customer = identifier(contract.customer.name)
    return (
        f"{treatment}.{customer} = {label}.{customer} AND {treatment}.{CONTACTED_AT} < {label}.{MATURED_AT} "
        f"AND {treatment}.{CONTACTED_AT} > {label}.{SNAPSHOT_TIME} - INTERVAL {days} DAY"
    )


def touched(contract: Contract, window: str) -> str:
    """SQL for the windows of `churn_labels` in which the list of a window had a part, from a view `treatments`."""
    return (
        "SELECT DISTINCT l._window FROM churn_labels AS l JOIN treatments AS t "
        f"ON t._window = '{window}' AND {_acted_on(contract, 'l', 't')} ORDER BY 1"
    )


def untreated(contract: Contract, labels: str) -> str:
    """SQL for the rows of a view of labels in which no contact had a part, from a view `treatments`.

    A model is to say who leaves when nobody does anything. Whether somebody did depends on the features, by way of an
    earlier model's score, and on the lot alone; so among customers with the same features those who were left alone
    are like all others, and what is learnt from them holds (ignorability given the features). The hold-out keeps
    customers at high risk among them.
    """
    return (
        f"SELECT l.* FROM {identifier(labels)} AS l WHERE NOT EXISTS "
        f"(SELECT 1 FROM treatments AS t WHERE t.{CONTACTED} AND {_acted_on(contract, 'l', 't')})"
    )


def weighted(contract: Contract, labels: str) -> str:
    """SQL for a view of labels with a column `_weight` more, from a view `treatments`: what each counts in a measure.

    Leaving out who was contacted would leave out the customers whom the model thought most at risk, and make it look
    worse than it is. So those who were held out of a list count for all of it: weight `listed / held out` (inverse
    probability weighting, Horvitz and Thompson 1952). Whom a list meant to contact counts 0. So does whoever was
    contacted all the same, held out or on no list: the others who were held out stand in for the former, nobody can for
    the latter.
    """
    customer = identifier(contract.customer.name)
    left_alone = f"count(*) FILTER ({ARM} = '{HOLD_OUT}' AND NOT {CONTACTED})"
    lists = (
        f"SELECT _window, count(*) / nullif({left_alone}, 0) AS counts_for "
        f"FROM treatments WHERE {ARM} <> '{UNLISTED}' GROUP BY 1"
    )
    acted = (
        f"SELECT l.{customer} AS who, l.{SNAPSHOT_TIME} AS observed, "
        f"CASE WHEN bool_or(t.{ARM} <> '{HOLD_OUT}' OR t.{CONTACTED}) THEN 0.0 ELSE product(counts_for) END AS weight "
        f"FROM {identifier(labels)} AS l JOIN treatments AS t ON {_acted_on(contract, 'l', 't')} "
        "LEFT JOIN lists ON lists._window = t._window GROUP BY 1, 2"
    )
    return (
        f"WITH lists AS ({lists}), acted AS ({acted}) SELECT l.*, coalesce(weight, 1.0) AS {WEIGHT} "
        f"FROM {identifier(labels)} AS l LEFT JOIN acted ON who = l.{customer} AND observed = l.{SNAPSHOT_TIME}"
    )

"""Splitting labelled rows by time: train, then validation, then a test window that is newest of all.

The embargo: a row may be trained on only if its label was known when the first validation row was observed, and
likewise between validation and test. Rows in between are left out, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import MATURED_AT, SNAPSHOT_TIME

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from churn_platform.contract import Contract


class NotEnoughDataError(RuntimeError):
    """There are too few labelled rows to train and judge a model honestly."""


@dataclass(frozen=True)
class Splits:
    """Labelled rows in three parts that share no label horizon. `by` says how: time, or customer."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    by: str
    left_out: int  # rows under the embargo

    def describe(self) -> dict[str, str | int]:
        """What went where, for a run's parameters."""
        found: dict[str, str | int] = {"split_by": self.by, "rows_left_out_by_embargo": self.left_out}
        for name in ("train", "validation", "test"):
            part: pd.DataFrame = getattr(self, name)
            found[f"{name}_rows"] = len(part)
            found[f"{name}_first"] = str(part[SNAPSHOT_TIME].min())
            found[f"{name}_last"] = str(part[SNAPSHOT_TIME].max())
        return found


def window_keys(contract: Contract, times: pd.Series[pd.Timestamp]) -> pd.Series[str]:
    """The local period in which each observation lies: observations of one period are never split up."""
    local = times.dt.tz_convert(contract.time.timezone).dt.tz_localize(None)
    last_day = (contract.time.start.weekday() - 1) % 7  # of a weekly window
    week = f"W-{('MON', 'TUE', 'WED', 'THU', 'FRI', 'SAT', 'SUN')[last_day]}"
    period = {"monthly": "M", "weekly": week, "daily": "D"}[contract.time.cadence]
    return local.dt.to_period(period).astype(str)


def split(contract: Contract, rows: pd.DataFrame) -> Splits:
    """Divide labelled rows.

    Args:
        contract: what it says under `model`.
        rows: with `snapshot_time`, `label_matured_at` and the customer's key.

    Raises:
        NotEnoughDataError: there are not enough labelled windows, or customers.
    """
    keys = window_keys(contract, rows[SNAPSHOT_TIME])
    names = sorted(keys.unique())
    spec = contract.model
    if _undated(contract):
        return _by_customer(contract, rows)
    if len(names) < spec.min_windows:
        only = f"only {names[0]} is labelled" if len(names) == 1 else f"{len(names)} windows are labelled"
        remedy = "Wait for more windows to be labelled, or lower it."
        if contract.snapshots is not None:
            remedy += " A table that holds one date only takes `observed_at` in place of `time`."
        raise NotEnoughDataError(f"{only} so far, and model.min_windows asks for {spec.min_windows}. {remedy}")
    observed, matured = rows[SNAPSHOT_TIME].groupby(keys), rows[MATURED_AT].groupby(keys)
    first_observed, last_matured = observed.min(), matured.max()
    test_names = names[-spec.test_windows :]
    # only windows before: a label that is known at once is known before its own window begins, too
    known = [n for n in names if n < test_names[0] and last_matured[n] <= first_observed[test_names[0]]]
    validation_names = known[-spec.validation_windows :]
    known = [n for n in known[: -spec.validation_windows] if last_matured[n] <= first_observed[validation_names[0]]]
    train_names = known[-spec.train_windows :] if spec.train_windows is not None else known
    if not train_names:
        raise NotEnoughDataError(
            f"labels of {len(names)} windows are mature, but none could have been trained on: each label has to be "
            "known before the validation window begins, and those of validation before the test window. Wait for more "
            "windows; a label with a long horizon needs many."
        )
    test, validation, train = (rows[keys.isin(part)] for part in (test_names, validation_names, train_names))
    used_since = rows[keys >= train_names[0]]
    return Splits(train, validation, test, "time", len(used_since) - len(train) - len(validation) - len(test))


@dataclass(frozen=True)
class Fold:
    """Positions of rows, to fit on and to judge by: later windows, other customers."""

    train: NDArray[np.int64]
    valid: NDArray[np.int64]


def folds(contract: Contract, rows: pd.DataFrame, n: int) -> list[Fold]:
    """Cross-validation as the model will be used: fitted on the past of some customers, judged on others, later.

    Customers are divided into `n` groups by a hash of their key. The newer half of the windows is divided into up to
    `n` blocks of consecutive windows. A fold is judged on one group in one block, and fitted on the other groups in the
    windows whose labels were known when the block began (the embargo of `split`). So no customer is on both sides of a
    fold, and nothing is fitted on what was not known yet. A table without time is divided by customers alone.

    Args:
        contract: the windows, and the customer's key.
        rows: with `snapshot_time`, `label_matured_at` and the key; positions refer to their order.
        n: at least 2.

    Returns:
        At most `n` folds, each with rows on both sides.

    Raises:
        NotEnoughDataError: no window was known before another one began, or there are too few customers.
    """
    group = hashed_groups(rows[contract.customer.name], n)
    if _undated(contract):
        pairs = [(group != chosen, group == chosen) for chosen in range(n)]
    else:
        pairs = _walk_forward(contract, rows, group, n)
    found = [
        Fold(np.flatnonzero(train), np.flatnonzero(valid)) for train, valid in pairs if train.any() and valid.any()
    ]
    if len(found) < 2:
        raise NotEnoughDataError(
            f"{len(rows):,} rows give no two folds of other customers in later windows. It takes two windows at least, "
            "the labels of the first known when the second begins."
        )
    return found


def _walk_forward(
    contract: Contract, rows: pd.DataFrame, group: NDArray[np.int64], n: int
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    keys = window_keys(contract, rows[SNAPSHOT_TIME])
    first_observed = rows[SNAPSHOT_TIME].groupby(keys).min()
    last_matured = rows[MATURED_AT].groupby(keys).max()
    names = sorted(keys.unique())

    def known_before(name: str) -> list[str]:
        return [other for other in names if other < name and last_matured[other] <= first_observed[name]]

    newer = [name for name in names[-((len(names) + 1) // 2) :] if known_before(name)]
    if not newer:
        return []
    blocks = [list(block) for block in np.array_split(np.array(newer, dtype=object), min(n, len(newer)))]
    pairs = []
    for chosen in range(n):
        block = blocks[chosen % len(blocks)]
        train = keys.isin(known_before(block[0])).to_numpy() & (group != chosen)
        pairs.append((train, keys.isin(block).to_numpy() & (group == chosen)))
    return pairs


def hashed_groups(customers: pd.Series[Any], n: int) -> NDArray[np.int64]:
    """A number from 0 to n - 1 for each row, the same for all rows of a customer and the same always."""
    hashed = pd.util.hash_pandas_object(customers.astype(str), index=False).to_numpy().astype("uint64")
    return ((hashed // np.uint64(100)) % np.uint64(n)).astype("int64")  # the last digits divide a table without time


def why_not(contract: Contract, observations: pd.DataFrame) -> str:
    """Why labels of these observations (`snapshot_time`, `label_matured_at`) cannot be split yet; empty if they can.

    One row per observation is enough, so this is cheap to ask before a training run is started.
    """
    if _undated(contract):
        return ""  # split by customer
    try:
        split(contract, observations)
    except NotEnoughDataError as error:
        return str(error)
    return ""


def _undated(contract: Contract) -> bool:
    return contract.snapshots is not None and contract.snapshots.time is None


def _by_customer(contract: Contract, rows: pd.DataFrame) -> Splits:
    """A table without time can only be split by customer: 60 / 20 / 20 %, by a hash of the key, the same always."""
    hashed = pd.util.hash_pandas_object(rows[contract.customer.name].astype(str), index=False).to_numpy()
    place = hashed.astype("uint64") % np.uint64(100)
    train, validation, test = rows[place < 60], rows[(place >= 60) & (place < 80)], rows[place >= 80]
    if min(len(train), len(validation), len(test)) == 0:
        raise NotEnoughDataError(f"{len(rows)} labelled customers are too few to split into three parts.")
    return Splits(train, validation, test, by="customer", left_out=0)

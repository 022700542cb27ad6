"""Drift: how far this window's customers are from those that the champion was trained on.

Evidently computes the distances and the page; method and threshold are fixed by the contract for every column,
because Evidently's own choice of test depends on the number of rows, and what "drifts" then depends on it too. At most
`drift.sample_rows` rows of each side are compared. Columns that cannot be compared (nothing known in one of the two)
are reported as such and not judged.

The distances are asked for one by one and the page is made only where it is wanted: it takes some twenty times as long
as they do, and a replay of history compares hundreds of times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import PROBABILITY

if TYPE_CHECKING:
    from pathlib import Path

    from churn_platform.contract import Contract

MIN_ROWS = 300  # by chance alone PSI is some 0.07 at 200 rows and 0.2 at 50, so half of the columns would "drift"


class DriftError(ValueError):
    """There is too little to compare."""


@dataclass(frozen=True)
class ColumnDrift:
    """One column's verdict. `score` is a distance: 0 for equal distributions."""

    column: str
    method: str
    score: float
    threshold: float
    watched: bool

    @property
    def drifted(self) -> bool:
        """Whether the distance is larger than the contract allows."""
        return self.score > self.threshold


@dataclass(frozen=True)
class DriftReport:
    """The verdict on a window."""

    columns: list[ColumnDrift]
    not_comparable: list[str]
    share: float  # of the watched columns that drifted
    drifted: bool

    @property
    def score_drift(self) -> float | None:
        """The distance of the champion's probabilities, where there were any."""
        return next((found.score for found in self.columns if found.column == PROBABILITY), None)

    def table(self) -> str:
        """The verdicts as a Markdown table, worst first."""
        lines = ["| column | method | distance | threshold | verdict |", "|---|---|---|---|---|"]
        for found in sorted(self.columns, key=lambda column: -column.score / column.threshold):
            verdict = "**drifted**" if found.drifted else "steady"
            if not found.watched:
                verdict += " (not watched)"
            lines.append(f"| {found.column} | {found.method} | {found.score:.3f} | {found.threshold} | {verdict} |")
        lines += [f"| {column} | | | | not comparable |" for column in self.not_comparable]
        return "\n".join(lines)


def compare(
    contract: Contract, reference: pd.DataFrame, current: pd.DataFrame, page: Path | None = None
) -> DriftReport:
    """Compare a window's rows with the reference.

    Args:
        contract: what it says under `drift`, and which features are watched.
        reference: the champion's training rows: features and, of those that were held out, `churn_probability`.
        current: the window's rows, the same columns.
        page: where to write Evidently's page (one HTML file that needs no network).

    Raises:
        DriftError: one of the two has fewer than MIN_ROWS rows, or no column can be compared.
    """
    for name, rows in (("the reference", reference), ("the window", current)):
        if len(rows) < MIN_ROWS:
            raise DriftError(f"{name} has {len(rows)} rows; at least {MIN_ROWS} are needed to speak of drift.")
    names = [*contract.feature_names]
    if PROBABILITY in reference and PROBABILITY in current:
        names.append(PROBABILITY)
    categorical = set(contract.categorical_features)
    left, right = (_prepared(rows, names, categorical, contract.drift.sample_rows) for rows in (reference, current))
    comparable = [
        name for name in names if left[name].notna().sum() >= MIN_ROWS and right[name].notna().sum() >= MIN_ROWS
    ]
    if not comparable:
        raise DriftError("no column holds enough values in both the reference and the window.")
    scores = _distances(contract, left, right, comparable, categorical)
    if page is not None:
        _write_page(contract, left, right, comparable, categorical, page)
    watched = {*contract.watched_features, PROBABILITY}
    columns = [
        ColumnDrift(
            column=name,
            method=_how(contract, name)[0],
            score=scores[name],
            threshold=_how(contract, name)[1],
            watched=name in watched,
        )
        for name in comparable
    ]
    share, drifted = verdict(contract, columns)
    return DriftReport(columns, [name for name in names if name not in comparable], share, drifted)


def verdict(contract: Contract, columns: list[ColumnDrift]) -> tuple[float, bool]:
    """The share of the watched features that drifted; and whether the window did, as `drift.judged_by` has it."""
    features = [found for found in columns if found.column != PROBABILITY]
    watched = [found.drifted for found in features if found.watched]
    share = sum(watched) / len(watched) if watched else 0.0
    match contract.drift.judged_by:
        case "any_feature":
            return share, any(found.drifted for found in features)
        case "scores":
            return share, any(found.drifted for found in columns if found.column == PROBABILITY)
        case _:
            return share, share >= contract.drift.share


def _how(contract: Contract, name: str) -> tuple[str, float]:
    """Method and threshold of a column: the contract's own, or its override for this column."""
    override = contract.drift.columns.get(name)
    method = (override.method if override else None) or contract.drift.method
    if method == "wasserstein" and name in contract.categorical_features:
        method = "jensenshannon"  # there is no distance between the values of a category
    return method, (override.threshold if override else None) or contract.drift.threshold


def _prepared(rows: pd.DataFrame, names: list[str], categorical: set[str], limit: int) -> pd.DataFrame:
    """Plain float64 and text columns, at most `limit` rows, chosen the same way every time."""
    if len(rows) > limit:
        rows = rows.sample(limit, random_state=7)
    columns: dict[str, Any] = {}
    for name in names:
        if name in categorical:
            columns[name] = rows[name].astype(object).mask(rows[name].isna(), None)
        else:
            columns[name] = pd.to_numeric(rows[name]).astype("float64")
    return pd.DataFrame(columns).reset_index(drop=True)


def _distances(
    contract: Contract, reference: pd.DataFrame, current: pd.DataFrame, names: list[str], categorical: set[str]
) -> dict[str, float]:
    """Evidently's distance of each column, as its page shows them."""
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    found: dict[str, float] = {}
    for name in names:
        kind = ColumnType.Categorical if name in categorical else ColumnType.Numerical
        left, right = (rows[name].replace([-np.inf, np.inf], np.nan).dropna() for rows in (reference, current))
        method, threshold = _how(contract, name)
        found[name] = float(get_stattest(left, right, kind, method)(left, right, kind, threshold).drift_score)
    return found


def _write_page(  # noqa: PLR0917
    contract: Contract,
    reference: pd.DataFrame,
    current: pd.DataFrame,
    names: list[str],
    categorical: set[str],
    page: Path,
) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(
        numerical_columns=[name for name in names if name not in categorical],
        categorical_columns=[name for name in names if name in categorical],
    )
    # the page's own share counts the watched features, as ours does; all else is shown beside it
    judged = [name for name in names if name in contract.watched_features]
    shown: list[Any] = [
        ValueDrift(column=name, method=_how(contract, name)[0], threshold=_how(contract, name)[1])
        for name in names
        if name not in judged
    ]
    if judged:
        preset = DataDriftPreset(
            columns=judged,
            drift_share=contract.drift.share,
            per_column_method={name: _how(contract, name)[0] for name in judged},
            per_column_threshold={name: _how(contract, name)[1] for name in judged},
        )
        shown.insert(0, preset)
    with np.errstate(divide="ignore", invalid="ignore"):  # a constant column has no correlations, and needs none
        snapshot = Report(shown, include_tests=True).run(
            Dataset.from_pandas(current[names], data_definition=definition),
            Dataset.from_pandas(reference[names], data_definition=definition),
        )
    snapshot.save_html(str(page))

"""Performance on real outcomes: scores joined with the labels that matured since.

A customer who was contacted and stayed is no false alarm. Customers whom somebody acted on are left out, and those held
out of a retention list count for all of it (`ml.retention.weighted`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from churn_platform.contract import LABEL, MODEL_VERSION, PROBABILITY, SNAPSHOT_TIME
from churn_platform.ml import metrics
from churn_platform.ml.retention import WEIGHT
from churn_platform.ml.splits import window_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from churn_platform.contract import Contract


_REPRESENTED = 0.95  # of the scored customers, for a fall of performance to be a reason to act


@dataclass(frozen=True)
class Measured:
    """How good a model was on the customers that it scored at one observation."""

    model: str
    observed: pd.Timestamp
    rows: int
    churners: int
    promised_roc_auc: float  # what the model showed on its test window when it was promoted
    metrics: dict[str, float]
    treated: int = 0  # customers left out because somebody acted on their score
    represented: float = 1.0  # the share of all scored customers for whom the rows stand

    def drop(self, contract: Contract) -> float | None:
        """How far ROC AUC lies below the promise.

        None on few customers, where it is chance and no reason to act; and where nobody was held out to stand for those
        who were contacted: without the customers most at risk, ROC AUC is lower whatever the model is worth.
        """
        gates = contract.gates
        drop = self.promised_roc_auc - self.metrics["roc_auc"]
        enough = self.rows >= gates.min_test_rows and self.churners >= gates.min_test_churners
        enough = enough and self.represented >= _REPRESENTED
        return drop if enough and not math.isnan(drop) else None

    def row(self) -> dict[str, object]:
        """As a row of the table model_performance."""
        return {
            MODEL_VERSION: self.model,
            SNAPSHOT_TIME: self.observed,
            "rows": self.rows,
            "treated": self.treated,
            "churn_rate": self.churners / self.rows,
            "promised_roc_auc": self.promised_roc_auc,
            **self.metrics,
        }


def measure(
    contract: Contract, joined: pd.DataFrame, tags_of: Callable[[str], Mapping[str, str]]
) -> tuple[list[Measured], int]:
    """Measure each model on each window's customers, oldest first.

    Args:
        contract: gives threshold and windows.
        joined: one row per scored customer whose label is mature: `churned`, `churn_probability`, `model_version`,
            `snapshot_time` (UTC) and, where customers were contacted, `_weight` (`ml.retention.weighted`).
        tags_of: the registry's tags of a model version.

    Returns:
        The measurements, and the number of rows that were left out because the model had seen their labels.
    """
    found: list[Measured] = []
    seen = 0
    # rows of a snapshots table may each have a time of day of their own: a window's customers are judged together
    for (_, model), part in joined.groupby([window_keys(contract, joined[SNAPSHOT_TIME]), MODEL_VERSION], sort=True):
        tags = tags_of(str(model))
        unseen = part[part[SNAPSHOT_TIME] >= pd.Timestamp(tags["labels_known_until"])]
        seen += len(part) - len(unseen)
        weights = unseen[WEIGHT] if WEIGHT in unseen.columns else pd.Series(1.0, index=unseen.index)
        scored, represented = len(unseen), float(weights.sum() / max(len(unseen), 1))
        unseen, weights = unseen[weights > 0], weights[weights > 0]
        if unseen.empty:
            continue
        labels = unseen[LABEL].to_numpy(dtype="float64")
        probability = unseen[PROBABILITY].to_numpy(dtype="float64")
        found.append(
            Measured(
                model=str(model),
                observed=unseen[SNAPSHOT_TIME].max(),
                rows=len(unseen),
                churners=int(labels.sum()),
                promised_roc_auc=float(tags["test_roc_auc"]),
                metrics=metrics.evaluate(
                    labels,
                    probability,
                    float(tags.get("threshold", contract.model.threshold)),
                    np.asarray(weights),
                ),
                treated=scored - len(unseen),
                represented=min(1.0, represented),
            )
        )
    return found, seen

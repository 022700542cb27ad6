"""The canary: how its answers compare with the champion's, and what became of the customers.

`promotion` starts and stops it. The customers of the two arms are others, by lot: so the arms are compared as groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from churn_platform import prediction_log, treatments
from churn_platform.contract import ARM, LABEL, MODEL_VERSION, PREDICTION, PROBABILITY, SNAPSHOT_TIME
from churn_platform.engine import connection, identifier
from churn_platform.ml import metrics, retention

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb
    import pandas as pd

    from churn_platform.contract import Contract
    from churn_platform.ml.metrics import Interval
    from churn_platform.resources.storage import TableStore


@dataclass(frozen=True)
class Arm:
    """What one version said in one arm; and of the customers whose label is known since, how good that was."""

    arm: str
    version: str
    answers: int
    customers: int
    mean_probability: float
    high_risk: float  # share of the answers
    matured: int  # customers, at some time, whose label is known
    churners: int  # of them
    brier: Interval
    roc_auc: Interval

    def words(self) -> str:
        """The arm for people."""
        told = (
            f"{self.arm:<9} version {self.version:<4} {self.answers:>9,} answers about {self.customers:,} customers, "
            f"{self.high_risk:.1%} High Risk, mean probability {self.mean_probability:.4f}"
        )
        if not self.matured:
            return f"{told}; no label has matured yet"
        told += f"; {self.matured:,} labels have matured, {self.churners:,} of them churners"
        if math.isnan(self.brier.value):
            return f"{told}: too few of both kinds to measure"
        scores = {"Brier": self.brier, "ROC AUC": self.roc_auc}
        return told + "".join(f"; {name} {s.value:.4f} [{s.low:.4f}, {s.high:.4f}]" for name, s in scores.items())


def arms(contract: Contract, tables: TableStore, since: datetime | None = None) -> list[Arm]:
    """The arms of the prediction log, the champion's first.

    A customer who was asked about again on the same features counts once where outcomes are measured, and customers who
    were contacted do not count (`ml.retention`).

    Args:
        contract: names the customer; its `gates.confidence` is that of the intervals.
        tables: hold answers, labels and treatments.
        since: only answers from then on.
    """
    if tables.version(prediction_log.TABLE) is None:
        return []
    customer = identifier(contract.customer.name)
    with connection() as con:
        days = [day for day in prediction_log.rows_per_day(tables) if since is None or day >= f"{since:%Y-%m-%d}"]
        tables.read(con, prediction_log.TABLE, days)
        con.execute(
            f"CREATE TEMP TABLE answered AS SELECT * FROM {prediction_log.TABLE} "
            f"WHERE {prediction_log.ANSWERED_AT} >= coalesce(CAST(? AS TIMESTAMPTZ), '-infinity')",
            [None if since is None else since.isoformat()],
        )
        said = con.sql(
            f"SELECT {ARM}, {MODEL_VERSION}, count(*) AS answers, count(DISTINCT {customer}) AS customers, "
            f"avg({PROBABILITY}) AS mean, avg(CAST({PREDICTION} = 'High Risk' AS INTEGER)) AS high_risk "
            f"FROM answered GROUP BY ALL ORDER BY {ARM} DESC, 2"
        ).df()
        outcomes = _outcomes(con, contract, tables)
    return [_arm(contract, row, outcomes) for row in said.to_dict("records")]


def _outcomes(con: duckdb.DuckDBPyConnection, contract: Contract, tables: TableStore) -> pd.DataFrame:
    """One row per arm, version, customer and time of features whose label is known and counts."""
    customer = identifier(contract.customer.name)
    counted = f"(SELECT NULL AS {customer}, NULL::TIMESTAMPTZ AS {SNAPSHOT_TIME}, NULL AS {LABEL} WHERE false)"
    if tables.version("churn_labels") is not None:
        counted = tables.read(con, "churn_labels")
        if treatments.read(con, tables):
            counted = f"({retention.untreated(contract, counted)})"
    return con.sql(
        f"SELECT DISTINCT a.{ARM}, a.{MODEL_VERSION}, CAST(a.{customer} AS VARCHAR) AS customer, a.{PROBABILITY}, "
        f"CAST(l.{LABEL} AS DOUBLE) AS {LABEL}, l.{SNAPSHOT_TIME} FROM answered a JOIN {counted} l "
        f"ON l.{customer} = a.{customer} AND l.{SNAPSHOT_TIME} = a.{prediction_log.FEATURE_TIME} ORDER BY ALL"
    ).df()


def _arm(contract: Contract, said: dict[Any, Any], outcomes: pd.DataFrame) -> Arm:
    known = outcomes[(outcomes[ARM] == said[ARM]) & (outcomes[MODEL_VERSION] == said[MODEL_VERSION])]
    labels, probability = (known[name].to_numpy(dtype="float64") for name in (LABEL, PROBABILITY))
    brier, roc_auc = (
        metrics.interval(metric, labels, probability, known["customer"], contract.gates.confidence)
        for metric in (metrics.brier, metrics.fast_roc_auc)
    )
    return Arm(
        arm=said[ARM],
        version=said[MODEL_VERSION],
        answers=int(said["answers"]),
        customers=int(said["customers"]),
        mean_probability=float(said["mean"]),
        high_risk=float(said["high_risk"]),
        matured=len(known),
        churners=int(labels.sum()),
        brier=brier,
        roc_auc=roc_auc,
    )

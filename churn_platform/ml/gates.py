"""The gates: what a candidate model must show on the test window before it may be champion.

A gate that cannot be judged has failed. Each verdict says what was measured, what was asked for, and what to do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from churn_platform.ml import metrics
from churn_platform.ml.validation import Finding

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]

ALWAYS = {
    "test_window_is_large_enough": "The test window holds enough customers, and enough churners, for a verdict.",
    "signature_is_recorded": "The model carries the schema of what it takes and what it answers.",
    "beats_the_base_rate": "The Brier score is significantly better than that of the churn rate, said of everybody.",
    "not_worse_than_the_champion": "On the same test rows, ROC AUC is not significantly below the champion's.",
}


def descriptions(contract: Contract) -> dict[str, str]:
    """The gates of a contract, in the order in which they are shown, and what each asks for."""
    return ALWAYS | {
        f"{metric}_is_good_enough": f"On the test window, {metric} is {_asked(contract, metric)}, as the contract asks."
        for metric in contract.metrics_gated
    }


def names(contract: Contract) -> list[str]:
    """The names of a contract's gates."""
    return list(descriptions(contract))


def _asked(contract: Contract, metric: str) -> str:
    least = contract.gates.minimum.get(metric)  # type: ignore[call-overload]
    most = contract.gates.maximum.get(metric)  # type: ignore[call-overload]
    words = ([f"at least {least}"] if least is not None else []) + ([f"at most {most}"] if most is not None else [])
    return " and ".join(words)


def fingerprint(contract: Contract) -> str:
    """Eight hex digits that change when the gates ask for something else: a verdict by other gates does not count."""
    asked = f"{contract.gates.model_dump_json()} {contract.model.threshold}"
    return hashlib.sha256(asked.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Evidence:
    """What the gates look at: the test window's labels and what candidate, champion and base rate say of them."""

    customers: pd.Series[str]
    labels: Array
    candidate: Array
    champion: Array | None  # None where there is none to compare with
    train_rate: float  # the share of churners among the training rows
    has_signature: bool
    no_champion_because: str = "there is no champion yet"


def judge(contract: Contract, evidence: Evidence) -> list[Finding]:
    """The verdict of every gate in `names(contract)`, in that order."""
    gates = contract.gates
    churners = int(evidence.labels.sum())
    rows = len(evidence.labels)
    found = [
        Finding(
            "test_window_is_large_enough",
            rows >= gates.min_test_rows and gates.min_test_churners <= churners < rows,
            f"{rows:,} rows with {churners:,} churners; needed are {gates.min_test_rows:,} and "
            f"{gates.min_test_churners:,}",
            "A verdict on fewer customers would be chance. Wait for more labels, test on more windows "
            "(model.test_windows), or lower gates.min_test_rows if your customer base is that small.",
            {"rows": rows, "churners": churners},
        ),
        Finding(
            "signature_is_recorded",
            evidence.has_signature,
            "the model carries its input and output schema" if evidence.has_signature else "the model has no signature",
            "Train it again: a model without a signature cannot be served safely.",
        ),
    ]
    missing, remedy = "", ""
    if rows == 0 or churners in (0, rows):
        missing = f"the test window has {churners} churners in {rows} rows: nothing can be compared on it"
        remedy = "Wait for a window with both kinds of customers."
    elif not np.isfinite(evidence.candidate).all():
        missing = f"{(~np.isfinite(evidence.candidate)).sum():,} of the candidate's {rows:,} answers are no numbers"
        remedy = "Train it again; look for infinite or missing values in the features."
    if missing:
        return found + [Finding(name, False, missing, remedy) for name in names(contract)[2:]]
    return [
        *found,
        _against_base_rate(contract, evidence),
        _against_champion(contract, evidence),
        *_thresholds(contract, evidence),
    ]


def _against_base_rate(contract: Contract, evidence: Evidence) -> Finding:
    constant = np.full(len(evidence.labels), evidence.train_rate)
    gain = metrics.paired_difference(
        metrics.brier,
        evidence.labels,
        constant,
        evidence.candidate,
        evidence.customers,
        contract.gates.confidence,
    )
    return Finding(
        "beats_the_base_rate",
        gain.low > 0,
        f"Brier score better by {gain} than answering {evidence.train_rate:.3f} for everybody",
        "The model knows nothing that the churn rate alone does not. Look at the features and the label.",
        {"gain": gain.value, "low": gain.low, "high": gain.high},
    )


def _against_champion(contract: Contract, evidence: Evidence) -> Finding:
    name = "not_worse_than_the_champion"
    if evidence.champion is None:
        return Finding(name, True, evidence.no_champion_because)
    difference = metrics.paired_difference(
        metrics.fast_roc_auc,
        evidence.labels,
        evidence.candidate,
        evidence.champion,
        evidence.customers,
        contract.gates.confidence,
    )
    return Finding(
        name,
        difference.high >= 0,
        f"ROC AUC differs by {difference} from the champion's on the same rows",
        "The champion stays. Retraining made the model significantly worse: look at the newest labels "
        "(a closure, a changed definition, missing purchases) before training again.",
        {"difference": difference.value, "low": difference.low, "high": difference.high},
    )


def _thresholds(contract: Contract, evidence: Evidence) -> list[Finding]:
    measured = metrics.evaluate(evidence.labels, evidence.candidate, contract.model.threshold)
    found = []
    for metric in contract.metrics_gated:
        value = measured[metric]
        least, most = contract.gates.minimum.get(metric), contract.gates.maximum.get(metric)  # type: ignore[call-overload]
        passed = not np.isnan(value) and (least is None or value >= least) and (most is None or value <= most)
        asked = _asked(contract, metric)
        found.append(
            Finding(
                f"{metric}_is_good_enough",
                bool(passed),
                f"{metric} is {value:.4f}; asked for is {asked}",
                f"The candidate is not promoted. Compare it with earlier runs in MLflow; the bound stands under "
                f"gates in contract.yaml ({metric}).",
                {
                    "value": value,
                    **({"minimum": least} if least is not None else {}),
                    **({"maximum": most} if most is not None else {}),
                },
            )
        )
    return found

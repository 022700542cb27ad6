"""Training at size: `python -m benchmarks.training`.

Time and peak memory of `ml.training.train`, the function behind the asset `candidate_model`, for each family with its
defaults: two fits (training windows; training and validation windows), calibration and the judgement on the
test window. Each measurement is a process of its own, and its clock starts when the rows are in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import cpu_seconds, gigabytes, watch
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.contract_file import load

PROJECT = Path(__file__).resolve().parent.parent
FAMILIES = ("logistic_regression", "gradient_boosting", "random_forest")
WINDOWS = 10


@dataclass(frozen=True)
class Trained:
    """One training. Seconds and GB; `failed` says why there are none."""

    family: str
    rows: int
    wall: float | None = None
    cpu: float | None = None
    peak: float | None = None
    before: float | None = None  # peak memory before training: libraries and rows
    roc_auc: float | None = None
    failed: str = ""


def main() -> None:
    """Measure, print a table, and write build/bench-training.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--sizes", default="1e5,1e6", help="numbers of labelled rows, with commas between")
    parser.add_argument("--families", default=",".join(FAMILIES), help="only these, in this order")
    parser.add_argument("--short", action="store_true", help="1e4 rows only")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds after which a training is ended")
    parser.add_argument("--memory", type=float, default=20, help="GB at which a training is ended")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        family, rows = arguments.child.split(",")
        return _say(json.dumps(asdict(_train(family, int(rows)))))
    sizes = [int(float(size)) for size in ("1e4" if arguments.short else arguments.sizes).split(",")]
    found = [
        _measure(family, size, arguments.timeout, arguments.memory)
        for size in sizes
        for family in arguments.families.split(",")
    ]
    target = PROJECT / "build" / "bench-training.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    _say("\n| rows | family | wall s | CPU s | peak GB | of it libraries and rows | ROC AUC |")
    _say("|---|---|---|---|---|---|---|")
    for one in found:
        _say(f"| {one.rows:,} | {one.family} | {_words(one)} |")
    return _say(f"\nwritten to {target}")


def labelled(contract: Contract, rows: int, seed: int = 7) -> pd.DataFrame:
    """A made-up training set: `rows` rows of the contract's features over ten monthly windows, 15 % of them churners.

    Who churns hangs on recency against a customer's own pace, so that trees find more than a line does.
    """
    random = np.random.default_rng(seed)
    window = np.arange(rows) % WINDOWS
    pace = random.gamma(2, 0.6, rows)  # purchases a month
    counts = [random.poisson(pace * months) for months in (1, 3, 6)]
    recency = np.minimum(random.exponential(30 / (pace + 0.3)), 60)
    risk = 1.6 * np.log1p(recency * pace / 30) - 0.35 * np.sqrt(counts[1]) - 0.4 * (pace > 2) * (recency < 10)
    probability = 1 / (1 + np.exp(-(risk - 1.9 + random.normal(0, 0.5, rows))))
    observed = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(31 * window, unit="D")
    values: dict[str, Any] = {
        "purchases_30d": counts[0],
        "purchases_90d": counts[1],
        "purchases_180d": counts[2],
        "amount_90d": counts[1] * random.lognormal(3, 0.6, rows),
        "avg_purchase_amount_180d": np.where(counts[2] > 0, random.lognormal(3, 0.6, rows), np.nan),
        "recency_days": recency,
        "mean_gap_days_180d": np.where(counts[2] > 1, 30 / (pace + 0.1) * random.gamma(8, 1 / 8, rows), np.nan),
        "tenure_months": random.uniform(2, 30, rows),
        "purchase_frequency": pace * random.gamma(10, 0.1, rows),
        "age": random.integers(18, 90, rows),
        "customer_segment": random.choice(np.array(["standard", "plus", "premium"], dtype=object), rows),
        contract.customer.name: [f"c{number}" for number in np.arange(rows) // WINDOWS],
        SNAPSHOT_TIME: observed,
        MATURED_AT: observed + pd.Timedelta(days=28),
        LABEL: (random.random(rows) < probability).astype("int64"),
    }
    return pd.DataFrame(values)


def _train(family: str, rows: int) -> Trained:
    from sklearn import ensemble, linear_model  # noqa: F401 - loading libraries is no training

    from churn_platform.ml.training import train

    contract = load(PROJECT / "docs" / "examples" / "simulated.yaml")
    contract = contract.model_copy(update={"model": contract.model.model_copy(update={"family": family})})
    data = labelled(contract, rows)
    before, started, cpu = gigabytes("self", "VmHWM"), time.perf_counter(), cpu_seconds()
    trained = train(contract, data)
    wall, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    auc = trained.metrics["test_roc_auc"]
    return Trained(family, rows, wall, cpu, gigabytes("self", "VmHWM"), before, auc)


def _measure(family: str, rows: int, timeout: float, memory: float) -> Trained:
    command = [sys.executable, "-m", "benchmarks.training", "--child", f"{family},{rows}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own module
        failed = watch(process, timeout, memory)
        answer = process.stdout.read() if process.stdout is not None else b""
    if process.returncode and not failed:
        failed = f"failed with {process.returncode}"
    found = Trained(family, rows, failed=failed) if failed else Trained(**json.loads(answer))
    _say(f"  {rows:>9,} {family:<20} {_words(found)}")
    return found


def _words(one: Trained) -> str:
    if one.failed:
        return f"{one.failed} | | | |"
    return f"{one.wall:.1f} | {one.cpu:.1f} | {one.peak:.2f} | {one.before:.2f} | {one.roc_auc:.4f}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

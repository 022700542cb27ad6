"""Retraining policies on simulated histories: `python -m benchmarks.replay`.

Where nothing changes, retraining should not pay; where what predicts churn changes, it should; and where candidates are
trained on few customers, it should not be said to. The same histories, made smaller, are what the tests of the replay
look at.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date, timedelta
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract, Simulated, SimulatedDrift, Value
from churn_platform.contract_file import load
from churn_platform.engine import connection
from churn_platform.ml import features, labels, replay
from churn_platform.settings import PROJECT
from churn_platform.sources.simulated_process import SIGNUP_LEAD_DAYS, Drift, Simulation, simulate
from churn_platform.windows import windows

if TYPE_CHECKING:
    from collections.abc import Sequence

# A year of labels before the first model: with fewer, every retrain is better for its season and its numbers alone.
LABELLED = 14
FIRST = LABELLED + 7  # and the warm-up
TRAINED = 4  # windows, where there is drift: a model of all of history would learn mostly what is true no more
FEW = 15  # a history of so many times fewer customers, whose candidates are trained on the newest window alone


def contract_of(
    customers: int, scored: int, drift: Sequence[SimulatedDrift] = (), train_windows: int | None = None
) -> Contract:
    """The example's contract, for a history in which about so many windows are scored."""
    example = load(PROJECT / "docs" / "examples" / "simulated.yaml")
    months = FIRST + scored
    end = date(2021 + months // 12, months % 12 + 1, 1)
    return example.model_copy(
        update={
            "source": Simulated(kind="simulated", present=end, customers=customers, drift=list(drift)),
            "model": example.model.model_copy(update={"min_windows": LABELLED, "train_windows": train_windows}),
            "gates": example.gates.model_copy(update={"minimum": {}}),  # no model may reach it after a drift
            # a contact for one customer in twenty
            "value": Value(
                customer_value="amount_90d", value_factor=0.5, offer_cost=3, acceptance=0.2, capacity=customers // 20
            ),
            "time": example.time.model_copy(update={"start": date(2021, 1, 1), "end": end}),
        }
    )


def history(contract: Contract) -> pd.DataFrame:
    """What `ml.replay.replay` takes, without a play: simulated, and the platform's features and labels of it."""
    source, span = contract.source, contract.time
    if not isinstance(source, Simulated) or span.end is None:
        raise ValueError("this makes histories of simulated sources with an end")
    drift = tuple(Drift(change.kind, change.at, change.strength) for change in source.drift)
    start = span.start + timedelta(days=SIGNUP_LEAD_DAYS)
    chunks = list(simulate(Simulation(source.customers, start, span.end, source.seed, drift=drift)))
    last = pd.Timestamp(span.end, tz="UTC").to_pydatetime()
    with connection() as con:
        for table, when in (("customers", "signup_time"), ("purchases", "purchase_time")):
            con.register(table, pa.concat_tables([getattr(chunk, table) for chunk in chunks]))
            name = "transactions" if table == "purchases" else table
            con.execute(
                f"CREATE TEMP TABLE validated_{name} AS SELECT *, strftime({when}, '%Y-%m-01') AS _window FROM {table} "
                f"WHERE {when} >= TIMESTAMPTZ '{span.start}'"
            )
        seen, known = [], []
        for window in windows(contract, last):
            seen.append(features.build(con, contract, window).df().assign(**{replay.WINDOW: window.key}))
            known.append(labels.build(con, contract, window).df().assign(**{replay.KNOWN_IN: window.key}))
    both = [contract.customer.name, SNAPSHOT_TIME]
    rows = pd.concat(seen).merge(pd.concat([part for part in known if len(part)]), on=both, how="left")
    for name in (SNAPSHOT_TIME, MATURED_AT):
        rows[name] = pd.to_datetime(rows[name], utc=True)
    rows = rows[rows[features.AT_RISK].astype(bool)]
    return rows.sort_values([replay.WINDOW, contract.customer.name], ignore_index=True)


def main() -> None:
    """Replay the histories; print tables and times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--customers", type=int, default=10_000, help="that sign up in all")
    parser.add_argument("--windows", type=int, default=24, help="about how many are scored")
    parser.add_argument("--only", choices=["quiet", "drifting", "few"], help="one of the histories")
    arguments = parser.parse_args()
    for name, (title, contract) in histories(arguments.customers, arguments.windows).items():
        if arguments.only in {None, name}:
            rows = history(contract)
            began = time.perf_counter()
            report = replay.replay(contract, rows, say=_say)
            seconds = time.perf_counter() - began
            windows, policies = len(report.windows), len(report.results)
            scored = rows[rows[replay.WINDOW] >= report.windows[0]].groupby(replay.WINDOW).size().mean()
            _say(f"\n{title}: {len(rows):,} observations, churn rate {rows[LABEL].mean():.1%}")
            _say(f"{windows} windows of {scored:,.0f} customers at risk, {policies} policies: {seconds:.0f} s\n")
            _say(f"{report.table()}\n\n{report.recommendation}\n")


def histories(customers: int, scored: int) -> dict[str, tuple[str, Contract]]:
    """The histories that are replayed, by a short name: a title, and the contract."""
    quiet = contract_of(customers, scored)
    change = quiet.time.start + timedelta(days=30 * (FIRST + scored // 3))
    drift = [SimulatedDrift(kind="concept", at=change.replace(day=1), strength=1.0)]
    return {
        "quiet": ("without drift", quiet),
        "drifting": (
            f"concept drift from {change:%Y-%m}, trained on the newest {TRAINED} windows",
            contract_of(customers, scored, drift, TRAINED),
        ),
        "few": ("few customers, trained on the newest window", contract_of(customers // FEW, scored, (), 1)),
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

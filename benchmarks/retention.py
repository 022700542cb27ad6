"""What decisions by value look like on complete_journey: `python -m benchmarks.retention`.

Trains a candidate on 2017 as of November and draws what its threshold was chosen on (docs/images/profit.png); prints
what can be observed of the campaigns. The figures in docs/retention.md are from it.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pandas as pd

from churn_platform.assets.training import profit_figure
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.contract_file import load
from churn_platform.engine import connection
from churn_platform.ml import features, labels, models, uplift
from churn_platform.ml.training import train
from churn_platform.settings import PROJECT
from churn_platform.sources.complete_journey import CompleteJourneyProducer
from churn_platform.windows import windows

UNTIL = datetime(2017, 12, 1, tzinfo=UTC)
TABLES = ("customers", "contacts", "transactions")
PICTURE = PROJECT / "docs" / "images" / "profit.png"


def history(contract: Contract) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every labelled observation with its features, and every contact with a campaign, as the platform has them."""
    producer = CompleteJourneyProducer(contract)
    seen, known = [], []
    with connection(contract.time.timezone) as con:
        for window in windows(contract, UNTIL):
            for name, rows in producer.tables(window):
                con.register("landed", rows)
                exists = con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", [f"validated_{name}"])
                begin = (
                    f"INSERT INTO validated_{name}"
                    if exists.fetchone() == (1,)
                    else f"CREATE TABLE validated_{name} AS"
                )
                con.execute(f"{begin} SELECT *, '{window.key}' AS _window FROM landed")
            seen.append(features.build(con, contract, window).df())
            known.append(labels.build(con, contract, window).df())
        contacts = con.sql("SELECT household_id, start_date FROM validated_contacts").df()
    both = [contract.customer.name, SNAPSHOT_TIME]
    rows = pd.concat([part for part in known if len(part)]).merge(pd.concat(seen), on=both)
    for name in (SNAPSHOT_TIME, MATURED_AT):
        rows[name] = pd.to_datetime(rows[name], utc=True)
    contacts["start_date"] = pd.to_datetime(contacts["start_date"], utc=True)
    return rows, contacts


def main() -> None:
    """Draw the profit curve, print what contacts did."""
    contract = load(PROJECT / "contract.yaml")
    rows, contacts = history(contract)
    contract = contract.model_copy(update={"model": contract.model.model_copy(update={"search": None})})
    trained = train(contract, rows)
    profit_figure(contract, trained).savefig(PICTURE, dpi=80, bbox_inches="tight")
    _say(f"threshold {trained.threshold:.4f}, {len(trained.splits.validation):,} validation rows; {PICTURE}")
    met = rows[[contract.customer.name, SNAPSHOT_TIME, MATURED_AT]].reset_index().merge(contacts, on="household_id")
    within = (met["start_date"] >= met[SNAPSHOT_TIME]) & (met["start_date"] < met[MATURED_AT])
    contacted = rows.index.isin(met.loc[within, "index"])
    inputs = models.frame(contract, rows)
    found = uplift.observed(
        rows[LABEL].to_numpy(dtype="float64"),
        contacted,
        lambda: uplift.propensity(contract, inputs, contacted),
        rows[contract.customer.name],
        contract.gates.confidence,
    )
    _say(found.words(contract.gates.confidence))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

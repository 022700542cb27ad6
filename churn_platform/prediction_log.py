"""The prediction log: every answer of the endpoint, as a table.

The endpoint leaves segments (`resources.segments`); `land` brings the finished ones into the table `prediction_log`, a
partition for each UTC day. Each line is in the table exactly once, whatever is killed: a segment goes only after its
lines are committed, and a line whose id is there already is not written again. docs/prediction_log.md says the format.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from churn_platform import erasure
from churn_platform.contract import ARM, MODEL_VERSION, PREDICTION, PROBABILITY, Contract
from churn_platform.engine import connection, identifier, literal
from churn_platform.resources.segments import FINISHED, OPEN, REJECTED, Segments
from churn_platform.resources.storage import PARTITION, MissingTableError, TableStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import duckdb
    import pandas as pd
    from numpy.typing import NDArray

    from churn_platform.settings import Settings

TABLE = "prediction_log"
ANSWER, ANSWERED_AT, FEATURE_TIME = "answer_id", "answered_at", "feature_timestamp"
SHADOW_VERSION, SHADOW_PROBABILITY = "shadow_version", "shadow_probability"
CHAMPION_ARM, CANARY_ARM = "champion", "canary"
_AT_A_TIME = 256 * 1024 * 1024  # bytes of segments that are landed in one go
_LINE = (
    '{"id": "VARCHAR", "at": "VARCHAR", "customer": "JSON", "version": "VARCHAR", "arm": "VARCHAR", '
    '"probability": "DOUBLE", "threshold": "DOUBLE", "decision": "VARCHAR", "feature_timestamp": "VARCHAR", '
    '"stale": "BOOLEAN", "features": "JSON", "shadow_version": "VARCHAR", "shadow_probability": "DOUBLE"}'
)
_WHO = """regexp_extract(line, '"customer"\\s*:\\s*"?([^",}]*)', 1)"""  # in a line that cannot be read


def columns(contract: Contract) -> dict[str, tuple[str, str]]:
    """Name to type and meaning of the columns of the table."""
    return {
        ANSWER: ("string", "names the answer"),
        ANSWERED_AT: ("timestamp", "when it was given"),
        contract.customer.name: (contract.customer.type, "the customer"),
        MODEL_VERSION: ("string", "the version that answered"),
        ARM: ("string", "what it answered as: champion or canary"),
        PROBABILITY: ("float", "of churning, as it was said"),
        "threshold": ("float", "the version's own: High Risk from this probability on"),
        PREDICTION: ("string", "High Risk or Low Risk"),
        FEATURE_TIME: ("timestamp", "as of when the features were"),
        "stale": ("boolean", "whether they were older than the contract allows"),
        "features": ("string", "their values, a JSON object"),
        SHADOW_VERSION: ("string", "the challenger that was asked as well"),
        SHADOW_PROBABILITY: ("float", "what it said, and nobody was told; missing where it failed"),
    }


@dataclass
class Landed:
    """What a landing did."""

    segments: int = 0
    rows: int = 0
    days: dict[str, int] = field(default_factory=dict)  # UTC day to rows
    duplicates: int = 0  # lines that were in the table already
    erased: int = 0  # lines of customers who were erased
    cut: int = 0  # last lines of killed processes
    rejected: int = 0  # other lines that cannot be read; they stand in <segment>.rejected
    oldest: datetime | None = None  # of the rows

    def words(self) -> str:
        """The landing for people."""
        told = f"{self.rows:,} answers of {self.segments:,} segments landed"
        for number, what in (
            (self.duplicates, "were there already"),
            (self.erased, "of customers who were erased left out"),
            (self.cut, "cut lines of killed processes"),
            (self.rejected, "lines cannot be read, see *.rejected"),
        ):
            told += f"; {number:,} {what}" if number else ""
        return told


def segments(contract: Contract, settings: Settings) -> Segments:
    """Where the endpoint leaves its answers."""
    return Segments(settings.predictions_of(contract))


# ---------------------------------------------------------------------------------------------------- landing


def land(tables: TableStore, contract: Contract, settings: Settings, say: Callable[[str], None] = print) -> Landed:
    """Bring all finished segments into the table.

    Killed at any moment, the next call finishes, and each line is in the table once. One landing at a time works on
    this machine; between machines the tag of runs that write sees to it.

    Args:
        tables: hold the table and the list of customers who were erased.
        contract: says what a customer is.
        settings: say where the segments are, and hold the key.
        say: told what was landed.
    """
    found, place = Landed(), segments(contract, settings)
    with _alone(settings), connection() as con:
        place.finish_left()
        for names in _in_parts(place.names(FINISHED)):
            _read(con, place, names)
            _type(con, contract)
            _commit(con, tables, contract, settings, found)
            _reject(con, place, names, found)
            for name in names:
                place.remove(name)
                found.segments += 1
    say(found.words())
    return found


def _in_parts(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Segments in parts that are landed one after the other, however many have piled up."""
    part: list[str] = []
    total = 0
    for name, size in sizes.items():
        if part and total + size > _AT_A_TIME:
            yield part
            part, total = [], 0
        part.append(name)
        total += size
    if part:
        yield part


def _read(con: duckdb.DuckDBPyConnection, place: Segments, names: Sequence[str]) -> None:
    """The lines of some segments as the table `_lines`; bytes that are no UTF-8 are written out, and make no JSON."""
    con.execute("CREATE OR REPLACE TEMP TABLE _lines (segment INTEGER, number BIGINT, whole BOOLEAN, line VARCHAR)")
    for segment, name in enumerate(names):
        number = 0
        for lines in place.chunks(name):
            try:
                told = pa.array([line.strip() for line in lines], pa.binary()).cast(pa.string())
            except pa.ArrowInvalid:
                told = pa.array([line.strip().decode(errors="backslashreplace") for line in lines], pa.string())
            whole = pa.array([line.endswith(b"\n") for line in lines], pa.bool_())
            con.register("_chunk", pa.table({"line": told, "whole": whole, "n": range(number, number + len(lines))}))
            con.execute(f"INSERT INTO _lines SELECT {segment}, n, whole, line FROM _chunk WHERE line <> ''")
            con.unregister("_chunk")
            number += len(lines)


def _type(con: duckdb.DuckDBPyConnection, contract: Contract) -> None:
    """The lines with their types as the table `_typed`; `good` says whether a line is what the format describes."""
    kinds = "('VARCHAR')" if contract.customer.type == "string" else "('BIGINT', 'UBIGINT')"
    key = "VARCHAR" if contract.customer.type == "string" else "BIGINT"
    customer = f"CASE WHEN json_type(told.customer) IN {kinds} THEN TRY(CAST(told.customer ->> '$' AS {key})) END"
    typed = f"""
        SELECT segment, number, whole, line, told.id AS {ANSWER}, TRY_CAST(told.at AS TIMESTAMPTZ) AS {ANSWERED_AT},
            {customer} AS {identifier(contract.customer.name)}, told.version AS {MODEL_VERSION}, told.arm AS {ARM},
            told.probability AS {PROBABILITY}, told.threshold AS threshold, told.decision AS {PREDICTION},
            TRY_CAST(told.feature_timestamp AS TIMESTAMPTZ) AS {FEATURE_TIME},
            told.stale AS stale, CAST(told.features AS VARCHAR) AS features, told.shadow_version AS {SHADOW_VERSION},
            told.shadow_probability AS {SHADOW_PROBABILITY},
            json_type(told.features) = 'OBJECT'
                AND (told.feature_timestamp IS NULL) = ({FEATURE_TIME} IS NULL) AS shaped
        FROM (SELECT *, TRY(from_json(CASE WHEN json_valid(line) THEN line END, {literal(_LINE)})) AS told FROM _lines)
    """
    good = f"""
        shaped AND {ANSWER} <> '' AND {identifier(contract.customer.name)} IS NOT NULL AND {MODEL_VERSION} <> ''
        AND {ARM} IN ('{CHAMPION_ARM}', '{CANARY_ARM}') AND {PREDICTION} IN ('High Risk', 'Low Risk')
        AND {PROBABILITY} BETWEEN 0 AND 1 AND isfinite(threshold) AND stale IS NOT NULL
        AND coalesce({SHADOW_PROBABILITY} BETWEEN 0 AND 1, true)
        AND {ANSWERED_AT} BETWEEN TIMESTAMPTZ '2000-01-01' AND now() + INTERVAL 1 DAY
    """
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _typed AS SELECT *, strftime({ANSWERED_AT}, '%Y-%m-%d') AS day, "
        f"coalesce({good}, false) AS good FROM ({typed})"
    )
    con.execute("DROP TABLE _lines")


def _commit(
    con: duckdb.DuckDBPyConnection, tables: TableStore, contract: Contract, settings: Settings, found: Landed
) -> None:
    """Append the good lines to the table, a day at a time, without those that are there or must not be."""
    customer = identifier(contract.customer.name)
    who = f"CASE WHEN good THEN CAST({customer} AS VARCHAR) ELSE {_WHO} END"
    gone = erasure.of_erased(con, tables, settings, "_typed", who)
    if gone is not None:
        found.erased += con.execute(f"SELECT count(*) FROM _typed WHERE {gone}").fetchall()[0][0]
        con.execute(f"DELETE FROM _typed WHERE {gone}")
    total = con.execute("SELECT count(*) FROM _typed WHERE good").fetchall()[0][0]
    days = [day for (day,) in con.execute("SELECT DISTINCT day FROM _typed WHERE good ORDER BY 1").fetchall()]
    there = f"SELECT NULL AS {ANSWER} WHERE false"
    if days and tables.version(TABLE) is not None:
        there = f"SELECT {ANSWER} FROM {tables.read(con, TABLE, days, view='_there')}"
    # the same answer is always of the same day, so no other day has to be looked through
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _new AS SELECT * FROM _typed WHERE good AND {ANSWER} NOT IN ({there}) "
        f"QUALIFY row_number() OVER (PARTITION BY {ANSWER} ORDER BY segment, number) = 1"
    )
    written = ", ".join(map(identifier, columns(contract)))
    for day in days:
        rows, oldest = con.execute(f"SELECT count(*), min({ANSWERED_AT}) FROM _new WHERE day = ?", [day]).fetchall()[0]
        total -= rows
        if rows:
            chosen = con.sql(f"SELECT {written} FROM _new WHERE day = {literal(day)} ORDER BY {ANSWERED_AT}")
            tables.write(TABLE, chosen, day, keep=True)
            found.days[day] = found.days.get(day, 0) + rows
            found.rows += rows
            found.oldest = min(found.oldest or oldest, oldest)
    found.duplicates += total


def _reject(con: duckdb.DuckDBPyConnection, place: Segments, names: Sequence[str], found: Landed) -> None:
    """Keep the lines that cannot be read beside their segments. A line that was cut is of no use to anybody."""
    bad = con.execute("SELECT segment, whole, line FROM _typed WHERE NOT good ORDER BY segment, number").fetchall()
    kept: dict[int, list[str]] = {}
    for segment, whole, line in bad:
        if whole:
            kept.setdefault(segment, []).append(line)
    for segment, lines in kept.items():
        name = names[segment].removesuffix(FINISHED) + REJECTED
        place.put(name, "".join(f"{line}\n" for line in lines).encode())
    rejected = sum(map(len, kept.values()))
    found.rejected += rejected
    found.cut += len(bad) - rejected


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One landing at a time on this machine; a process that is killed lets go by that."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "prediction_log.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------- looking at it


def rows_per_day(tables: TableStore) -> dict[str, int]:
    """UTC day to the number of answers, oldest first; from the table's log, so no file is opened."""
    try:
        actions = pa.table(tables.open(TABLE).get_add_actions(flatten=True)).select(
            [f"partition.{PARTITION}", "num_records"]
        )
    except MissingTableError:
        return {}
    found: dict[str, int] = {}
    for action in actions.to_pylist():
        day = str(action[f"partition.{PARTITION}"])
        found[day] = found.get(day, 0) + action["num_records"]
    return dict(sorted(found.items()))


def daily(tables: TableStore, days: int = 14) -> pd.DataFrame:
    """The newest days by version and arm: `day`, `model_version`, `arm`, `answers`, `high_risk`, `mean`, `stale`.

    The last three are shares of the answers, and their mean probability.
    """
    newest = list(rows_per_day(tables))[-days:]
    with connection() as con:
        if not newest:
            nothing = ("day", MODEL_VERSION, ARM, "answers", "high_risk", "mean", "stale")
            return con.sql(f"SELECT {', '.join(f'NULL AS {name}' for name in nothing)} WHERE false").df()
        tables.read(con, TABLE, newest)
        return con.sql(
            f"SELECT {PARTITION} AS day, {MODEL_VERSION}, {ARM}, count(*) AS answers, "
            f"avg(CAST({PREDICTION} = 'High Risk' AS INTEGER)) AS high_risk, avg({PROBABILITY}) AS mean, "
            f"avg(CAST(stale AS INTEGER)) AS stale FROM {TABLE} GROUP BY ALL ORDER BY ALL"
        ).df()


def in_shadow(
    tables: TableStore, version: str, champion: str, most: int = 100_000
) -> tuple[int, int, NDArray[np.float64], NDArray[np.float64]]:
    """What a version said in the shadow of a champion.

    Args:
        tables: hold the table.
        version: that scored in the shadow.
        champion: that answered the same requests.
        most: answers to return.

    Returns:
        The number of answers to requests that the champion answered; that of requests, whoever answered them, on which
        the version failed; and the newest answers: its own, and the champion's on the same requests, shape (n,) each.
    """
    if tables.version(TABLE) is None:
        return 0, 0, np.zeros(0), np.zeros(0)
    beside = f"{ARM} = '{CHAMPION_ARM}' AND {MODEL_VERSION} = ? AND {SHADOW_PROBABILITY} IS NOT NULL"
    with connection() as con:
        tables.read(con, TABLE)
        answers, failed = con.execute(
            f"SELECT count(*) FILTER ({beside}), count(*) FILTER ({SHADOW_PROBABILITY} IS NULL) FROM {TABLE} "
            f"WHERE {SHADOW_VERSION} = ?",
            [champion, version],
        ).fetchall()[0]
        newest = con.execute(
            f"SELECT {SHADOW_PROBABILITY} AS own, {PROBABILITY} AS other FROM {TABLE} WHERE {beside} "
            f"AND {SHADOW_VERSION} = ? ORDER BY {ANSWERED_AT} DESC, {ANSWER} LIMIT {most}",
            [champion, version],
        ).fetchnumpy()
    own, other = (np.asarray(newest[name], dtype="float64") for name in ("own", "other"))
    return answers, failed, own, other


def open_segments(place: Segments) -> int:
    """How many segments are being written, or were left by processes on other machines."""
    return len(place.names(OPEN))


# ---------------------------------------------------------------------------------------------------- upkeep


def prune(tables: TableStore, place: Segments, days: int, dry_run: bool = False) -> tuple[list[str], int]:
    """Remove days that are older than so many days, and rejected lines as old; put the files of past days together.

    What is removed here goes from disk with the table's old versions (`resources.retention`).

    Returns:
        The days that were (or would be) removed, and the number of rejected segments.
    """
    today = datetime.now(UTC)
    since = (today - timedelta(days=days)).date().isoformat()
    rejected = [name for name in place.names(REJECTED) if place.written_at(name) < today - timedelta(days=days)]
    held = rows_per_day(tables)
    old = [day for day in held if day < since]
    if dry_run:
        return old, len(rejected)
    for name in rejected:
        place.remove(name)
    if old:
        tables.open(TABLE).delete(f"{PARTITION} < '{since}'")
    if held:
        table = tables.open(TABLE)
        files = pa.table(table.get_add_actions(flatten=True)).column(f"partition.{PARTITION}").to_pylist()
        for day in sorted(set(files)):
            if day < today.date().isoformat() and files.count(day) > 1:  # what lands every few minutes is a file each
                table.optimize.compact(partition_filters=[(PARTITION, "=", day)])
    return old, len(rejected)

"""Small worlds to test in: contracts whose column names are nobody else's, purchases, and ways to read them in."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import Contract, as_utc
from churn_platform.contract_file import parse
from churn_platform.engine import connection
from churn_platform.ml import ingestion, masking
from churn_platform.windows import Window, windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

KEY = b"a key for tests, and for nothing else"
LATER = datetime(2030, 1, 1, tzinfo=UTC)

PURCHASES = """\
contract: 1
name: corner_shop
owner: team:shop
source: {kind: files}
customer: {name: client, type: string}
time: {start: 2024-01-01, end: 2024-07-01, cadence: monthly, timezone: UTC}
tables:
  transactions:
    path: purchases.csv
    customer: client_no
    time: bought_at
    amount: paid
    order: receipt
    columns:
      client_no: {type: string}
      receipt: {type: string}
      bought_at: {type: timestamp}
      paid: {type: float, min: 0}
      shop: {type: string, nullable: true}
features:
  definitions:
    visits_30d: {kind: count, window_days: 30}
    spent_90d: {kind: sum, window_days: 90}
    basket_90d: {kind: mean, window_days: 90}
    largest_90d: {kind: max, window_days: 90}
    shops_90d: {kind: distinct, column: shop, window_days: 90}
    quiet_days: {kind: recency_days}
    gap_90d: {kind: mean_gap_days, window_days: 90}
    months: {kind: tenure_months}
    pace: {kind: frequency_per_month}
label: {active_within_days: 60, lead_days: 0, horizon_days: 28, warmup_days: 31}
"""

WIDE = """\
contract: 1
name: gym_members
owner: team:gym
source: {kind: files}
customer: {name: member, type: string}
time: {start: 2024-01-01, end: 2024-07-01, cadence: monthly, timezone: UTC}
tables:
  snapshots:
    path: members.csv
    customer: member_id
    time: as_of
    label: {column: left, positive: "Yes", negative: "No", matures_after_days: 30}
    columns:
      member_id: {type: string}
      as_of: {type: timestamp}
      plan: {type: string, allowed: [basic, gold], nullable: true}
      visits: {type: integer, min: 0, nullable: true}
      left: {type: string, nullable: true}
"""


def changed(text: str, *changes: tuple[str, str]) -> Contract:
    """The contract of a text in which something is written otherwise; each thing must stand there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return parse(text)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def all_windows(contract: Contract) -> list[Window]:
    return list(windows(contract, LATER))


def purchases(
    seed: int, customers: int = 12, rows: int = 150, start: str = "2024-01-01", days: int = 180
) -> pd.DataFrame:
    """Purchases with what makes trouble: lines of one receipt, equal times, round times, missing shops."""
    random = np.random.default_rng(seed)
    hours = random.integers(0, days * 24, rows)
    frame = pd.DataFrame(
        {
            "client_no": [f"c{n}" for n in random.integers(0, customers, rows)],
            "receipt": [f"r{n}" for n in random.integers(0, rows, rows)],
            "bought_at": pd.Timestamp(start, tz="UTC") + pd.to_timedelta(hours, unit="h"),
            "paid": random.integers(0, 10_000, rows) / 100,
            "shop": random.choice(np.array(["north", "south", "west", None], dtype=object), rows),
        }
    )
    frame["receipt"] = frame["client_no"] + frame["receipt"]
    return frame


@contextmanager
def engine(contract: Contract, key: bytes = KEY) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection as the ingestion has it."""
    with connection(contract.time.timezone) as con:
        masking.install_key(con, key)
        yield con


def landed(con: duckdb.DuckDBPyConnection, frame: pd.DataFrame, file: str = "a.csv", view: str = "landed") -> str:
    """A frame as a source's view; `_source` may be a column of it."""
    frame = frame if "_source" in frame else frame.assign(_source=file)
    con.register(f"{view}_frame", frame)
    con.execute(f"CREATE OR REPLACE TEMP TABLE {view} AS SELECT * FROM {view}_frame")
    return view


def typed(
    contract: Contract, frame: pd.DataFrame, table: str = "transactions", window: Window | None = None, key: bytes = KEY
) -> pd.DataFrame:
    """What the ingestion makes of a source's rows."""
    with engine(contract, key) as con:
        chosen = window or all_windows(contract)[0]
        return ingestion.typed_rows(con, contract, table, landed(con, frame), chosen).df()


def one_value(column: str, value: Any, kind: str = "VARCHAR", **changes: Any) -> tuple[Any, str | None]:
    """The typed value and the issue of one value of a column described by `column`, such as "{type: integer}"."""
    text = PURCHASES.replace("shop: {type: string, nullable: true}", f"shop: {column}")
    text = text.replace("    shops_90d: {kind: distinct, column: shop, window_days: 90}\n", "")
    contract = changed(text, *changes.get("contract", ()))
    with engine(contract) as con:
        con.execute(
            "CREATE TEMP TABLE landed AS SELECT 'c1' AS client_no, 'r1' AS receipt, '2024-01-05 10:00' AS bought_at, "
            f"'1' AS paid, CAST(? AS {kind}) AS shop, 'a.csv' AS _source",
            [value],
        )
        rows = ingestion.typed_rows(con, contract, "transactions", "landed", all_windows(contract)[0]).fetchall()
    assert len(rows) == 1, "a row was lost"
    return rows[0][4], rows[0][6]


def validated(con: duckdb.DuckDBPyConnection, name: str, frame: pd.DataFrame) -> None:
    """A frame as the view of a validated table."""
    con.register(f"{name}_frame", frame)
    con.execute(f"CREATE OR REPLACE TEMP TABLE validated_{name} AS SELECT * FROM {name}_frame")


def days(n: float) -> timedelta:
    return timedelta(days=n)


__all__ = ["as_utc", "changed", "engine", "instant", "landed", "purchases", "typed", "validated"]

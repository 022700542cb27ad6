"""What is measured on: purchases of our own generator, landed as Parquet, one set of files a size.

Both ways read the same files. Ours also finds them as validated tables, because its feature step begins there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from churn_platform.contract_file import parse
from churn_platform.settings import Settings
from churn_platform.windows import Window, windows

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from churn_platform.contract import Contract

# Each row is a purchase, as the generator makes them. The features are those of the specification.
CONTRACT = """\
contract: 1
name: bench
owner: team:bench
source: {kind: simulated, present: 2025-01-01, customers: 1000, seed: 3}
customer: {name: customer, type: string}
time: {start: 2023-01-01, end: 2026-01-01, cadence: monthly, timezone: UTC}
tables:
  transactions:
    customer: customer_id
    time: purchase_time
    amount: amount
    unique: [order_id]
    min_rows: 1
    max_quarantined: 0.01
    columns:
      customer_id: {type: string, pattern: "C[0-9]+"}
      order_id: {type: integer, min: 0}
      purchase_time: {type: timestamp}
      amount: {type: float, min: 0, max: 100000}
  customers:
    customer: customer_id
    time: signup_time
    min_rows: 0
    columns:
      customer_id: {type: string}
      signup_time: {type: timestamp}
      age: {type: integer, min: 0, max: 120}
      customer_segment: {type: string, allowed: [standard, plus, premium]}
features:
  ttl_days: 400
  definitions:
    purchases_30d: {kind: count, window_days: 30}
    purchases_90d: {kind: count, window_days: 90}
    purchases_180d: {kind: count, window_days: 180}
    amount_30d: {kind: sum, window_days: 30}
    amount_90d: {kind: sum, window_days: 90}
    amount_180d: {kind: sum, window_days: 180}
    avg_purchase_amount_90d: {kind: mean, window_days: 90}
    recency_days: {kind: recency_days}
    mean_gap_days_180d: {kind: mean_gap_days, window_days: 180}
    tenure_months: {kind: tenure_months}
    purchase_frequency: {kind: frequency_per_month}
    age: {kind: column, table: customers, column: age}
    customer_segment: {kind: column, table: customers, column: customer_segment}
label: {active_within_days: 60, lead_days: 0, horizon_days: 28, warmup_days: 90}
"""

END = date(2025, 1, 1)
OBSERVATIONS = 12  # monthly snapshots, the newest at END
LATE_DAYS = 20  # half of the customers are asked for up to so many days after an observation
_PURCHASES_PER_CUSTOMER = 12.2  # of the generator over two years, by the number that it is told to simulate


@dataclass(frozen=True)
class World:
    """The data of one size, in a folder of its own."""

    folder: Path
    purchases: int

    @cached_property
    def contract(self) -> Contract:
        """What the platform knows of the data."""
        return parse(CONTRACT)

    @cached_property
    def settings(self) -> Settings:
        """Where the platform keeps its stores; the environment of a measured process names the same."""
        return Settings(home=self.folder / "home", contract=self.folder / "contract.yaml")

    @property
    def windows(self) -> list[Window]:
        """The months of the history."""
        return list(windows(self.contract, datetime(END.year, END.month, END.day, tzinfo=UTC)))

    @property
    def observations(self) -> list[Window]:
        """The windows at whose ends customers are observed."""
        return self.windows[-OBSERVATIONS:]

    @property
    def entities(self) -> Path:
        """Who is asked for, and when: the customers of every snapshot."""
        return self.folder / "entities.parquet"

    @property
    def raw(self) -> Path:
        """The purchases with faults planted, which validation is to find."""
        return self.folder / "raw.parquet"

    @property
    def done(self) -> Path:
        """Says that the data is whole."""
        return self.folder / "_done"

    def landed(self, table: str) -> Path:
        """The folder of a table's Parquet files."""
        return self.folder / table

    def result(self, way: str, step: str) -> Path:
        """Where a measured step leaves its rows, for the comparison."""
        return self.folder / "results" / f"{way}-{step}.parquet"


def land(world: World) -> int:
    """Simulate, and write one Parquet file a table, month and chunk of customers; returns the number of purchases."""
    import pyarrow.parquet as pq

    from churn_platform.sources.simulated_process import SIGNUP_LEAD_DAYS, Simulation, purchases_between, simulate

    for table in ("transactions", "customers"):
        world.landed(table).mkdir(parents=True, exist_ok=True)
    start = world.contract.time.start + timedelta(days=SIGNUP_LEAD_DAYS)
    people = max(1, round(world.purchases / _PURCHASES_PER_CUSTOMER))
    rows = 0
    for number, chunk in enumerate(simulate(Simulation(customers=people, start=start, end=END, seed=3))):
        pq.write_table(
            chunk.customers.select(["customer_id", "signup_time", "age", "customer_segment"]),
            world.landed("customers") / f"{number:03}.parquet",
        )
        for window in world.windows:
            part = purchases_between(chunk, window.start, window.end)
            rows += part.num_rows
            pq.write_table(part, world.landed("transactions") / f"{window.key}-{number:03}.parquet")
    return rows


def prepare(world: World, with_raw: bool = True) -> int:
    """Everything that is there before a measurement begins; returns the number of purchases."""
    from churn_platform.engine import connection, literal
    from churn_platform.resources.storage import TableStore

    rows = land(world)
    world.settings.contract.write_text(CONTRACT)
    tables = TableStore(world.settings.tables_of(world.contract))
    with connection() as con:
        for window in world.windows:
            files = literal(str(world.landed("transactions") / f"{window.key}-*.parquet"))
            tables.write("validated_transactions", con.sql(f"SELECT * FROM read_parquet({files})"), window.key)
            within = f"signup_time >= '{window.start}' AND signup_time < '{window.end}'"
            signed_up = f"SELECT * FROM read_parquet({literal(str(world.landed('customers')))}||'/*.parquet')"
            tables.write("validated_customers", con.sql(f"{signed_up} WHERE {within}"), window.key)
        if with_raw:
            _entities(con, world)
            _raw(con, world)
    world.result("ours", "features").parent.mkdir(parents=True, exist_ok=True)
    world.done.write_text(str(rows))
    return rows


def _entities(con: duckdb.DuckDBPyConnection, world: World) -> None:
    """Every customer of every snapshot: half of them asked for at the observation, half some days and hours later."""
    from churn_platform.engine import literal

    times = ", ".join(f"(TIMESTAMPTZ '{window.end.isoformat()}')" for window in world.observations)
    later = f"to_hours(CAST(hash(customer_id, observed) >> 1 AS BIGINT) % {LATE_DAYS * 24})"
    con.execute(
        f"COPY (SELECT customer_id AS customer, "
        f"CASE WHEN hash(observed, customer_id) % 2 = 0 THEN observed ELSE observed + {later} END AS event_timestamp, "
        f"CAST(hash(customer_id) % 5 = 0 AS BIGINT) AS churned "
        f"FROM read_parquet({literal(str(world.landed('customers') / '*.parquet'))}), (VALUES {times}) times(observed) "
        f"WHERE signup_time < observed ORDER BY hash(customer_id, 1), observed) TO {literal(str(world.entities))}"
    )


def _raw(con: duckdb.DuckDBPyConnection, world: World) -> None:
    """The purchases as they are before validation: about one row in 2,000 breaks a rule."""
    from churn_platform.engine import literal

    con.execute(
        "COPY (SELECT CASE WHEN order_id % 7001 = 1 THEN NULL WHEN order_id % 9001 = 2 THEN upper(customer_id) || '?' "
        "ELSE customer_id END AS customer_id, order_id, purchase_time, "
        "CASE WHEN order_id % 4001 = 3 THEN -amount - 1 ELSE amount END AS amount, "
        "'raw.parquet' AS _source, NULL::VARCHAR AS _issues "
        f"FROM read_parquet({literal(str(world.landed('transactions') / '*.parquet'))})) "
        f"TO {literal(str(world.raw))}"
    )

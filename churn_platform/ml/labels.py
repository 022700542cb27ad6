"""Labels, and when they may be known.

An observation at time T is labelled from what happens in [T + lead, T + lead + horizon). Until that horizon is over
the label is not mature and does not exist. So labels are partitioned by the window in which they *matured*: a
partition never has to look into the future, and a training set that reads the partitions up to today can hold no
label that was not known today. The embargo is the shape of the table, not a filter that somebody may forget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, days_after, given, label_value
from churn_platform.engine import identifier, literal
from churn_platform.ml.features import event_time, snapshot_instant
from churn_platform.ml.inputs import matured_observations

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb

    from churn_platform.contract import Contract
    from churn_platform.windows import Window


def build(con: duckdb.DuckDBPyConnection, contract: Contract, window: Window) -> duckdb.DuckDBPyRelation:
    """The labels that matured in a window.

    Reads the view `validated_transactions` (or `validated_snapshots`), which holds the windows that
    `ml.inputs.needed_for_labels` lists. Returns columns: the customer's key, `snapshot_time` (the observation),
    `churned` (0 or 1) and `label_matured_at`. Only customers at risk are labelled: those who were known, at the
    observation, to have bought within `active_within_days` before it. Where rows have a time of arrival, one that
    arrived later makes nobody a customer at risk, who would have no features at that time; in the horizon it counts.
    """
    if contract.snapshots is not None:
        return _from_snapshots(con, contract, window)
    transactions, label = given(contract.tables.transactions), given(contract.label)
    customer, time = identifier(transactions.customer), event_time(contract, "transactions")
    key = identifier(contract.customer.name)
    parts = []
    for observed in matured_observations(contract, window):
        start = days_after(observed, label.lead_days, contract.zone)
        end = days_after(observed, label.lead_days + label.horizon_days, contract.zone)
        since = days_after(observed, -label.active_within_days, contract.zone)
        within = f"{time} >= {_instant(start)} AND {time} < {_instant(end)}"
        known = f"{time} < {_instant(observed)}"
        if transactions.arrived is not None:  # a row lies in the window in which it arrived, an observation ends one
            known += f" AND _window < {literal(observed.astimezone(contract.zone).date().isoformat())}"
        parts.append(
            f"SELECT {customer} AS {key}, {_instant(observed)} AS {SNAPSHOT_TIME}, "
            f"CAST(count(*) FILTER ({within}) = 0 AS BIGINT) AS {LABEL}, "
            f"{_instant(end)} AS {MATURED_AT} FROM validated_transactions "
            f"WHERE {time} >= {_instant(since)} AND {time} < {_instant(end)} GROUP BY 1 "
            f"HAVING count(*) FILTER ({known}) > 0"
        )
    if not parts:
        kind = "BIGINT" if contract.customer.type == "integer" else "VARCHAR"
        nothing = f"SELECT NULL::{kind} AS {key}, now() AS {SNAPSHOT_TIME}, 0::BIGINT AS {LABEL}, now() AS {MATURED_AT}"
        return con.sql(f"{nothing} WHERE false")
    return con.sql(" UNION ALL ".join(parts) + " ORDER BY 2, 1")


def _from_snapshots(con: duckdb.DuckDBPyConnection, contract: Contract, window: Window) -> duckdb.DuckDBPyRelation:
    table = given(contract.snapshots)
    time, zone = snapshot_instant(contract), literal(contract.time.timezone)
    # so many calendar days later, whatever zone the connection thinks in
    matured = f"timezone({zone}, timezone({zone}, {time}) + INTERVAL {table.label.matures_after_days} DAY)"
    value = identifier(table.label.column)
    positive = literal(label_value(table.columns[table.label.column], table.label.positive))
    # A dated row lands in the window [start, end) that holds its date, so what matures at once matures in that one.
    # The rows of a window come out together, when the last of them is mature: a model judged on some of them would be
    # judged on those that happened to be early. A table without dates lands whole with every window: its own copy is
    # read, and its one date may be a window's end.
    start, end = _instant(window.start), _instant(window.end)
    together = f"max({matured}) OVER (PARTITION BY _window)"
    within, released = "true", f"{together} >= {start} AND {together} < {end}"
    if table.time is None:
        within, released = f"_window = {literal(window.key)}", f"{together} > {start} AND {together} <= {end}"
    return con.sql(
        f"SELECT {identifier(table.customer)} AS {identifier(contract.customer.name)}, "
        f"{time} AS {SNAPSHOT_TIME}, CAST({value} = {positive} AS BIGINT) AS {LABEL}, "
        f"{matured} AS {MATURED_AT} FROM validated_snapshots WHERE {value} IS NOT NULL AND {within} "
        f"QUALIFY {released} ORDER BY 2, 1"
    )


def _instant(moment: datetime) -> str:
    return f"TIMESTAMPTZ {literal(moment.isoformat())}"

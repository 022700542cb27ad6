"""Features of customers as of an instant, in SQL.

A snapshot at time T has one row per customer who ever bought before T, and looks at rows before T only. The same
statement serves training (past snapshots) and the online store (the newest one), so the two cannot differ.

Money is summed as DECIMAL: a sum of doubles depends on the order of its terms, and features must come out the same,
to the last bit, however the engine spreads the work over threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.contract import SNAPSHOT_TIME, Kind, as_utc, days_after, given
from churn_platform.engine import identifier, literal

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb

    from churn_platform.contract import Contract, Feature
    from churn_platform.windows import Window

AT_RISK = "_at_risk"  # bought recently enough for the label to make sense: these customers are scored
DAYS_PER_MONTH = 30.4375

_ORDERS = "_orders"
_EXACT = "CAST(CAST({} AS DECIMAL(18, 6)) AS DECIMAL(38, 6))"


def build(con: duckdb.DuckDBPyConnection, contract: Contract, window: Window) -> duckdb.DuckDBPyRelation:
    """The features at the end of a window, from the views of the validated tables up to it.

    Returns columns: the customer's key, `snapshot_time`, every feature in the contract's order (DOUBLE, or VARCHAR
    where it is categorical; NULL where it is not defined), and `_at_risk`.
    """
    if contract.snapshots is not None:
        return _from_snapshots(con, contract, window)
    return con.sql(_snapshot_sql(contract, window.end, window.key))


def _from_snapshots(con: duckdb.DuckDBPyConnection, contract: Contract, window: Window) -> duckdb.DuckDBPyRelation:
    table = given(contract.snapshots)
    selected = [f"{identifier(table.customer)} AS {identifier(contract.customer.name)}"]
    selected.append(f"{snapshot_instant(contract)} AS {SNAPSHOT_TIME}")
    for name, feature in contract.feature_definitions.items():
        selected.append(f"{_stored(contract, name, identifier(str(feature.column)))} AS {identifier(name)}")
    selected.append(f"true AS {AT_RISK}")
    where = f"_window = {literal(window.key)}"
    return con.sql(f"SELECT {', '.join(selected)} FROM validated_snapshots WHERE {where}")


def snapshot_instant(contract: Contract) -> str:
    """SQL for the instant of a row of a snapshots table."""
    table = given(contract.snapshots)
    if table.observed_at is not None:
        return _instant(as_utc(table.observed_at, contract.zone))
    return event_time(contract, "snapshots")


def _snapshot_sql(contract: Contract, at: datetime, key: str) -> str:
    transactions, label = given(contract.tables.transactions), given(contract.label)
    customer, time = identifier(transactions.customer), event_time(contract, "transactions")
    amount = _EXACT.format(identifier(transactions.amount))
    per_order = f"{customer}, {identifier(transactions.order)}" if transactions.order else None
    orders = (
        f"SELECT {customer} AS _customer, min({time}) AS _time, sum({amount}) AS _amount "
        f"FROM validated_transactions WHERE {time} < {_instant(at)} GROUP BY {per_order}"
        if per_order
        else f"SELECT {customer} AS _customer, {time} AS _time, {amount} AS _amount "
        f"FROM validated_transactions WHERE {time} < {_instant(at)}"
    )
    definitions = contract.feature_definitions
    # the names of features begin with a letter, so these of ours collide with none
    base = ["_customer", "min(_time) AS _first", "max(_time) AS _last", "count(*) AS _orders_ever"]
    base += [
        f"{_aggregate(contract, feature, at)} AS {identifier(name)}"
        for name, feature in definitions.items()
        if _of_orders(feature)
    ]
    parts = [f"{_ORDERS} AS ({orders})", f"_seen AS (SELECT {', '.join(base)} FROM {_ORDERS} GROUP BY _customer)"]
    joins = ""
    by_rows = {
        table: {
            name: feature for name, feature in definitions.items() if feature.table == table and not _of_orders(feature)
        }
        for table in ("transactions", "contacts")
    }
    for table, features in by_rows.items():
        if features:
            parts.append(f"_rows_of_{table} AS ({_row_aggregates(contract, table, features, at)})")
            joins += f" LEFT JOIN _rows_of_{table} USING (_customer)"
    if contract.tables.customers is not None and any(f.table == "customers" for f in definitions.values()):
        parts.append(f"_attributes AS ({_attributes(contract, at, key)})")
        joins += " LEFT JOIN _attributes USING (_customer)"
    tenure = f"({_days(_instant(at), '_first')} / {DAYS_PER_MONTH})"
    selected = [f"_customer AS {identifier(contract.customer.name)}", f"{_instant(at)} AS {SNAPSHOT_TIME}"]
    for name, feature in definitions.items():
        selected.append(f"{_stored(contract, name, _final(name, feature, at, tenure))} AS {identifier(name)}")
    active_since = days_after(at, -label.active_within_days, contract.zone)
    selected.append(f"(_last >= {_instant(active_since)}) AS {AT_RISK}")
    return f"WITH {', '.join(parts)} SELECT {', '.join(selected)} FROM _seen{joins} ORDER BY 1"


def _of_orders(feature: Feature) -> bool:
    """Computed on purchases, as opposed to single rows of a table."""
    return feature.table == "transactions" and feature.kind is not Kind.distinct and feature.column is None


def event_time(contract: Contract, table_name: str) -> str:
    """SQL for the instant of a table's row; a day without a time is its midnight in the contract's zone."""
    table = contract.tables.items()[table_name]
    column = identifier(str(table.time_column))
    if table.columns[str(table.time_column)].type == "date":
        return f"timezone({literal(contract.time.timezone)}, CAST({column} AS TIMESTAMP))"
    return column


def _recent(contract: Contract, feature: Feature, at: datetime, time: str = "_time") -> str:
    """SQL that limits an aggregate to the feature's window, if it has one."""
    if feature.window_days is None:
        return ""
    return f"FILTER ({time} >= {_instant(days_after(at, -feature.window_days, contract.zone))})"


def _aggregate(contract: Contract, feature: Feature, at: datetime) -> str:
    """SQL over one customer's orders; what is not aggregated there is worked out in `_final`."""
    within = _recent(contract, feature, at)
    match feature.kind:
        case Kind.count:
            return f"count(*) {within}"
        case Kind.sum:
            return f"coalesce(sum(_amount) {within}, 0)"
        case Kind.mean:
            return f"CAST(sum(_amount) {within} AS DOUBLE) / nullif(count(_amount) {within}, 0)"
        case Kind.max:
            return f"max(_amount) {within}"
        case Kind.mean_gap_days:
            span = _days(f"(max(_time) {within})", f"(min(_time) {within})")
            return f"{span} / nullif(count(*) {within} - 1, 0)"
        case _:
            return "NULL"


def _row_aggregates(contract: Contract, table: str, features: dict[str, Feature], at: datetime) -> str:
    spec = contract.tables.items()[table]
    time = event_time(contract, table)
    selected = [f"{identifier(spec.customer)} AS _customer"]
    for name, feature in features.items():
        within = _recent(contract, feature, at, time)
        column = identifier(feature.column) if feature.column else ""
        match feature.kind:
            case Kind.count:
                value = f"count(*) {within}"
            case Kind.distinct:
                value = f"count(DISTINCT {column}) {within}"
            case Kind.sum:
                value = f"coalesce(sum({_EXACT.format(column)}) {within}, 0)"
            case Kind.mean:
                value = f"CAST(sum({_EXACT.format(column)}) {within} AS DOUBLE) / nullif(count({column}) {within}, 0)"
            case Kind.max:
                value = f"max({column}) {within}"
            case Kind.mean_gap_days:
                span = _days(f"(max({time}) {within})", f"(min({time}) {within})")
                value = f"{span} / nullif(count(*) {within} - 1, 0)"
            case Kind.recency_days:
                value = _days(_instant(at), f"max({time})")
            case Kind.tenure_months:
                value = f"{_days(_instant(at), f'min({time})')} / {DAYS_PER_MONTH}"
            case _:
                value = f"count(*) / greatest({_days(_instant(at), f'min({time})')} / {DAYS_PER_MONTH}, 1.0)"
        selected.append(f"{value} AS {identifier(name)}")
    return f"SELECT {', '.join(selected)} FROM validated_{table} WHERE {time} < {_instant(at)} GROUP BY 1"


def _final(name: str, feature: Feature, at: datetime, tenure: str) -> str:
    if _of_orders(feature):
        match feature.kind:
            case Kind.recency_days:
                return _days(_instant(at), "_last")
            case Kind.tenure_months:
                return tenure
            case Kind.frequency_per_month:
                return f"_orders_ever / greatest({tenure}, 1.0)"
            case _:
                return identifier(name)
    if feature.kind in (Kind.count, Kind.distinct, Kind.sum):
        return f"coalesce({identifier(name)}, 0)"
    return identifier(name)


def _attributes(contract: Contract, at: datetime, key: str) -> str:
    """What was known of each customer at that time: the newest row before it, or the rows that came with the window."""
    table = given(contract.tables.customers)
    columns = [
        f"{identifier(str(feature.column))} AS {identifier(name)}"
        for name, feature in contract.feature_definitions.items()
        if feature.table == "customers"
    ]
    customer = identifier(table.customer)
    where, order = f"_window = {literal(key)}", ", ".join(map(identifier, table.kept))
    if table.time is not None:
        time = event_time(contract, "customers")
        where, order = f"{time} < {_instant(at)}", f"{time} DESC, {order}"
    return (
        f"SELECT {customer} AS _customer, {', '.join(columns)} FROM validated_customers WHERE {where} "
        f"QUALIFY row_number() OVER (PARTITION BY {customer} ORDER BY {order}) = 1"
    )


def _stored(contract: Contract, name: str, value: str) -> str:
    return f"CAST({value} AS {'VARCHAR' if contract.is_categorical(name) else 'DOUBLE'})"


def _days(later: str, earlier: str) -> str:
    """Days between two instants, with fractions: DuckDB's date_diff counts midnights, which is something else."""
    return f"((epoch_us({later}) - epoch_us({earlier})) / 86400000000.0)"


def _instant(moment: datetime) -> str:
    return f"TIMESTAMPTZ {literal(moment.isoformat())}"

"""Features of customers as of an instant, in SQL.

A snapshot at time T has one row per customer who ever bought before T, and looks at rows before T only. The same
statement serves training (past snapshots) and the online store (the newest one), so the two cannot differ.

A snapshot hands on to the next what no bounded look back can tell: each customer's first and last purchase and how
many there were. So a new window reads the purchases inside the longest look back, and not all that ever were; where
there is no snapshot before it, it reads them all and comes to the same result, to the last bit.

Money is summed as DECIMAL: a sum of doubles depends on the order of its terms, and features must come out the same,
to the last bit, however the engine spreads the work over threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.contract import SNAPSHOT_TIME, Kind, as_utc, days_after, given
from churn_platform.engine import identifier, literal, share_work
from churn_platform.ml.inputs import first_looked_at, history
from churn_platform.windows import window as window_of

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb

    from churn_platform.contract import Contract, Feature
    from churn_platform.windows import Window

AT_RISK = "_at_risk"  # bought recently enough for the label to make sense: these customers are scored
DAYS_PER_MONTH = 30.4375

# What a snapshot hands on: the instants of the first and the last purchase, and the number of purchases.
STATE = {"_first": "TIMESTAMPTZ", "_last": "TIMESTAMPTZ", "_purchases": "BIGINT"}
_EXACT = "CAST({} AS DECIMAL(18, 6))"  # its sum is a DECIMAL(38, 6)


def build(
    con: duckdb.DuckDBPyConnection, contract: Contract, window: Window, previous: str | None = None
) -> duckdb.DuckDBPyRelation:
    """The features at the end of a window, from the views of the validated tables.

    Lines that share an order's number are one purchase, at the time of its first line, as long as they lie within the
    longest look back of each other; a number that comes back later is a new purchase.

    Args:
        con: with a view `validated_<table>` for each table, holding the windows that
            `ml.inputs.needed_for_features` lists.
        contract: the features.
        window: the window.
        previous: a view of the features of the window before, for whose `STATE` older purchases need not be read;
            without it `validated_transactions` holds all windows.

    Returns columns: the customer's key, `snapshot_time`, every feature in the contract's order (DOUBLE, or VARCHAR
    where it is categorical; NULL where it is not defined), `_at_risk` and, of purchases, `STATE`.
    """
    if contract.snapshots is not None:
        return _from_snapshots(con, contract, window)
    share_work(con, con.execute("SELECT count(*) FROM validated_transactions").fetchall()[0][0])
    return con.sql(_snapshot_sql(contract, window, previous))


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


def _snapshot_sql(contract: Contract, window: Window, previous: str | None) -> str:
    label, at = given(contract.label), window.end
    definitions = contract.feature_definitions
    # the names of features begin with a letter, so these of ours collide with none
    recent = [
        f"{_aggregate(contract, feature, at)} AS {identifier(name)}"
        for name, feature in definitions.items()
        if _of_orders(feature) and feature.window_days is not None
    ]
    parts = [
        f"_orders AS ({_orders(contract, window)})",
        f"_recent AS (SELECT {', '.join(['_customer', *recent])} FROM _orders GROUP BY _customer)",
        f"_new AS ({_new_purchases(contract, window, previous)})",
        f"_seen AS ({_ever(contract, previous)})",
    ]
    joins = " LEFT JOIN _recent USING (_customer)"
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
        parts.append(f"_attributes AS ({_attributes(contract, at, window.key)})")
        joins += " LEFT JOIN _attributes USING (_customer)"
    tenure = f"({_days(_instant(at), '_first')} / {DAYS_PER_MONTH})"
    selected = [f"_customer AS {identifier(contract.customer.name)}", f"{_instant(at)} AS {SNAPSHOT_TIME}"]
    for name, feature in definitions.items():
        selected.append(f"{_stored(contract, name, _final(name, feature, at, tenure))} AS {identifier(name)}")
    active_since = days_after(at, -label.active_within_days, contract.zone)
    selected += [f"(_last >= {_instant(active_since)}) AS {AT_RISK}", *STATE]
    return f"WITH {', '.join(parts)} SELECT {', '.join(selected)} FROM _seen{joins}"


def _orders(contract: Contract, window: Window) -> str:
    """Purchases within the longest look back: customer, time, amount."""
    transactions = given(contract.tables.transactions)
    customer, time = identifier(transactions.customer), event_time(contract, "transactions")
    amount = _EXACT.format(identifier(transactions.amount))
    since = literal(first_looked_at(contract, window, "transactions"))
    rows = f"FROM validated_transactions WHERE {time} < {_instant(window.end)} AND _window >= {since}"
    if transactions.order is None:
        return f"SELECT {customer} AS _customer, {time} AS _time, {amount} AS _amount {rows}"
    return (
        f"SELECT {customer} AS _customer, min({time}) AS _time, sum({amount}) AS _amount {rows} "
        f"GROUP BY {customer}, {identifier(transactions.order)}"
    )


def _new_purchases(contract: Contract, window: Window, previous: str | None) -> str:
    """First, last and number of the purchases that came with the window or, without a state, with all windows."""
    transactions = given(contract.tables.transactions)
    customer, time = identifier(transactions.customer), event_time(contract, "transactions")
    before = f"{time} < {_instant(window.end)}"
    new = f"_window = {literal(window.key)}" if previous is not None else "true"
    number = "count(*)" if transactions.order is None else "NULL::BIGINT"
    ends = (
        f"SELECT {customer} AS _customer, min({time}) AS _first, max({time}) AS _last, {number} AS _purchases "
        f"FROM validated_transactions WHERE {before} AND {new} GROUP BY 1"
    )
    if transactions.order is None or not _counts_purchases(contract):
        return ends
    counted = [window.key] if previous is not None else history(contract, window)
    begun = _orders_begun(contract, before, counted)
    return (
        "SELECT _customer, _first, _last, coalesce(_begun, 0) AS _purchases "
        f"FROM ({ends}) LEFT JOIN ({begun}) USING (_customer)"
    )


def _orders_begun(contract: Contract, where: str, counted: list[str]) -> str:
    """How many orders each customer began in the windows `counted`.

    The lines of an order may lie in several windows: it counts in the first of them. One that comes back after the
    longest look back counts anew: who starts from a state cannot see the first, so nobody may.
    """
    transactions = given(contract.tables.transactions)
    by = f"{identifier(transactions.customer)}, {identifier(str(transactions.order))}"
    looks_back_to = ", ".join(
        f"({literal(key)}, {literal(first_looked_at(contract, window_of(contract, key), 'transactions'))})"
        for key in counted
    )
    return (
        "SELECT _customer, count(*) AS _begun FROM ("
        f"SELECT {identifier(transactions.customer)} AS _customer, _window, "
        f"lag(_window) OVER (PARTITION BY {by} ORDER BY _window) AS _earlier "
        f"FROM validated_transactions WHERE {where} GROUP BY {by}, _window) "
        f"JOIN (VALUES {looks_back_to}) AS _reach (_window, _since) USING (_window) "
        "WHERE _earlier IS NULL OR _earlier < _since GROUP BY 1"
    )


def _counts_purchases(contract: Contract) -> bool:
    """Whether a feature needs to know how many purchases there ever were."""
    return any(_of_orders(f) and f.kind is Kind.frequency_per_month for f in contract.feature_definitions.values())


def _ever(contract: Contract, previous: str | None) -> str:
    """First, last and number of all purchases that a customer ever made."""
    if previous is None:
        return "SELECT * FROM _new"
    state = f"SELECT {identifier(contract.customer.name)} AS _customer, {', '.join(STATE)} FROM {identifier(previous)}"
    return (
        "SELECT _customer, min(_first) AS _first, max(_last) AS _last, CAST(sum(_purchases) AS BIGINT) AS _purchases "
        f"FROM ({state} UNION ALL SELECT * FROM _new) GROUP BY 1"
    )


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
    """SQL over one customer's recent orders."""
    within = _recent(contract, feature, at)
    match feature.kind:
        case Kind.count:
            return f"count(*) {within}"
        case Kind.sum:
            return f"sum(_amount) {within}"
        case Kind.mean:
            return f"CAST(sum(_amount) {within} AS DOUBLE) / nullif(count(_amount) {within}, 0)"
        case Kind.max:
            return f"max(_amount) {within}"
        case _:
            span = _days(f"(max(_time) {within})", f"(min(_time) {within})")
            return f"{span} / nullif(count(*) {within} - 1, 0)"


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
    """SQL over all that was aggregated: what the feature is in the end. Nothing found is no purchase, not a gap."""
    if feature.kind in (Kind.count, Kind.distinct, Kind.sum):
        return f"coalesce({identifier(name)}, 0)"
    if not _of_orders(feature):
        return identifier(name)
    match feature.kind:
        case Kind.recency_days:
            return _days(_instant(at), "_last")
        case Kind.tenure_months:
            return tenure
        case Kind.frequency_per_month:
            return f"_purchases / greatest({tenure}, 1.0)"
        case _:
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
    selected = f"SELECT {customer} AS _customer, {', '.join(columns)} FROM _rows"
    # most customers have one row: to look for the others costs half of what sorting all rows does
    return (
        f"WITH _rows AS (SELECT * FROM validated_customers WHERE {where}), "
        f"_several AS (SELECT {customer} FROM _rows GROUP BY 1 HAVING count(*) > 1) "
        f"{selected} ANTI JOIN _several USING ({customer}) "
        f"UNION ALL {selected} SEMI JOIN _several USING ({customer}) "
        f"QUALIFY row_number() OVER (PARTITION BY {customer} ORDER BY {order}) = 1"
    )


def _stored(contract: Contract, name: str, value: str) -> str:
    return f"CAST({value} AS {'VARCHAR' if contract.is_categorical(name) else 'DOUBLE'})"


def _days(later: str, earlier: str) -> str:
    """Days between two instants, with fractions: DuckDB's date_diff counts midnights, which is something else."""
    return f"((epoch_us({later}) - epoch_us({earlier})) / 86400000000.0)"


def _instant(moment: datetime) -> str:
    return f"TIMESTAMPTZ {literal(moment.isoformat())}"

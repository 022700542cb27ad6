"""What the endpoint is served must be what a model is trained on."""

import struct
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import duckdb
import pandas as pd

from churn_platform.assets.common import advice
from churn_platform.assets.feature_store import LOG
from churn_platform.contract import SNAPSHOT_TIME, Contract
from churn_platform.engine import connection, identifier, literal
from churn_platform.ml import features
from churn_platform.ml.inputs import needed_for_features
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore
from churn_platform.windows import window

SAMPLE = 500  # customers whose served values are compared
RECOMPUTED = 20  # customers of these whose features are computed once more

Row = dict[str, Any]


def checks(contract: Contract) -> list[dg.AssetChecksDefinition]:
    """The check on the feature store."""

    @dg.asset_check(
        asset="feature_store",
        blocking=True,
        description=f"For {SAMPLE} customers, others in each run, the online store serves exactly the newest window's "
        f"offline features; for {RECOMPUTED} of them these are what the validated tables give when computed again.",
    )
    def online_equals_offline(
        context: dg.AssetCheckExecutionContext,
        tables: dg.ResourceParam[TableStore],
        store: dg.ResourceParam[FeatureStore],
    ) -> dg.AssetCheckResult:
        with connection() as con:
            newest = tables.windows("customer_features")[-1]
            reason = _nothing_to_compare(con, tables, context.run.tags.get("dagster/partition"), newest)
            if reason:
                return dg.AssetCheckResult(passed=True, metadata=advice(True, reason, ""))
            offline = _sample(con, contract, tables, newest, context.run.run_id)
            served = store.online([row[contract.customer.name] for row in offline])
            left = store.online(_left(con, contract, tables, newest))
            again = _computed_again(con, contract, tables, newest, offline[:RECOMPUTED])
        different = [
            what if answer else "(missing online)"
            for row, answer in zip(offline, served, strict=True)
            for what in _differences(contract, row, answer)
        ]
        drifted = [
            what
            for row in offline[:RECOMPUTED]
            for what in _differences(contract, row, again.get(row[contract.customer.name]))
        ]
        stale = [answer[SNAPSHOT_TIME] for answer in left if answer is not None]
        times = [answer[SNAPSHOT_TIME] for answer in served if answer is not None]
        end = window(contract, newest).end
        expired = [time for time in [*times, *stale] if time < end - timedelta(days=contract.features.ttl_days)]
        words, remedy = _verdict(contract, newest, len(offline), different, drifted, expired=len(expired))
        return dg.AssetCheckResult(
            passed=not remedy,
            metadata=advice(
                not remedy,
                words,
                remedy,
                {
                    "customers_compared": len(offline),
                    "customers_computed_again": min(len(offline), RECOMPUTED),
                    "share_missing_online": served.count(None) / max(1, len(offline)),
                    **_ages(times, end),
                    "stale_customers": len(stale),  # of a sample of those who are not in the newest window
                    "expired_customers": len(expired),
                },
            ),
        )

    return [online_equals_offline]


def _nothing_to_compare(con: duckdb.DuckDBPyConnection, tables: TableStore, ran: str | None, newest: str) -> str:
    """Why nothing is expected to be online of what a run did; empty where the newest window should be."""
    if ran is not None and ran != newest:
        return f"window {ran} is older than {newest} and was not brought online: there is nothing to compare"
    if newest not in tables.windows(LOG):
        return ""
    tables.read(con, LOG, [newest])
    if con.execute(f"SELECT bool_or(online) FROM {LOG}").fetchall()[0][0]:
        return ""
    return f"more windows were to follow {newest}, so it was not brought online: there is nothing to compare"


def _sample(
    con: duckdb.DuckDBPyConnection, contract: Contract, tables: TableStore, newest: str, seed: str
) -> list[Row]:
    """The newest row of some customers of a window; other customers for another seed."""
    key = identifier(contract.customer.name)
    tables.read(con, "customer_features", [newest])
    chosen = f"SELECT DISTINCT {key} FROM customer_features ORDER BY hash({key}, {literal(seed)}) LIMIT {SAMPLE}"
    return _records(con.sql(f"SELECT * FROM customer_features WHERE {key} IN ({chosen})").df(), contract)


def _records(rows: pd.DataFrame, contract: Contract) -> list[Row]:
    """The newest row of each customer, for snapshots tables with several in a window."""
    newest = rows.sort_values(SNAPSHOT_TIME).drop_duplicates(contract.customer.name, keep="last")
    return [{str(name): value for name, value in row.items()} for row in newest.to_dict("records")]


def _left(con: duckdb.DuckDBPyConnection, contract: Contract, tables: TableStore, newest: str) -> list[Any]:
    """Some customers of earlier windows who are not in the newest, and so stay online as they last were.

    Looked for in the window before and in the last one beyond the ttl, not in all of them: a check must not cost in
    proportion to history. Who ever bought is in every later window, so of purchases there are none; whom a
    correction took out is forgotten when its window is brought online (`assets.feature_store`).
    """
    earlier = [key for key in tables.windows("customer_features") if key < newest]
    if contract.snapshots is None or not earlier:
        return []
    since = window(contract, newest).end - timedelta(days=contract.features.ttl_days)
    looked_at = {earlier[-1], *[key for key in earlier if window(contract, key).end < since][-1:]}
    key = identifier(contract.customer.name)
    tables.read(con, "customer_features", looked_at, view="_earlier")
    tables.read(con, "customer_features", [newest])
    rows = con.execute(
        f"SELECT DISTINCT {key} FROM _earlier ANTI JOIN customer_features USING ({key}) LIMIT {SAMPLE}"
    ).fetchall()
    return [customer for (customer,) in rows]


def _computed_again(
    con: duckdb.DuckDBPyConnection, contract: Contract, tables: TableStore, key: str, rows: list[Row]
) -> dict[Any, Row]:
    """Customer to features, computed from the whole history of some customers in the validated tables."""
    chosen = ", ".join(literal(row[contract.customer.name]) for row in rows) or "NULL"
    at = window(contract, key)
    for name, windows in needed_for_features(contract, at, from_previous=False).items():
        held = tables.read(con, f"validated_{name}", windows, view=f"_all_{name}")
        customer = identifier(contract.tables.items()[name].customer)
        con.execute(
            f"CREATE OR REPLACE TEMP VIEW {identifier(f'validated_{name}')} AS "
            f"SELECT * FROM {identifier(held)} WHERE {customer} IN ({chosen})"
        )
    found = _records(features.build(con, contract, at).df(), contract)
    return {row[contract.customer.name]: row for row in found}


def _differences(contract: Contract, row: Row, other: Row | None) -> list[str]:
    """What differs between a customer's offline row and another account of it."""
    if other is None:
        return ["(missing)"]
    # Feast serves times in whole seconds
    if pd.Timestamp(other[SNAPSHOT_TIME]).floor("s") != pd.Timestamp(row[SNAPSHOT_TIME]).floor("s"):
        return [SNAPSHOT_TIME]
    return [name for name in contract.feature_names if not _same(row[name], other[name])]


def _same(offline: object, online: object) -> bool:
    """Equal to the last bit; a missing value is NaN in a frame and None in the online store."""
    missing = [value is None or value != value for value in (offline, online)]  # noqa: PLR0124
    if any(missing):
        return all(missing)
    if isinstance(offline, float) and isinstance(online, float):
        return struct.pack("<d", offline) == struct.pack("<d", online)
    return offline == online


def _ages(times: list[datetime], end: datetime) -> dict[str, str | float]:
    """How old what is served is, at the newest window's end."""
    if not times:
        return {}
    return {
        "oldest_served": str(min(times)),
        "newest_served": str(max(times)),
        "oldest_served_age_days": (end - min(times)) / timedelta(days=1),
    }


def _verdict(
    contract: Contract, newest: str, compared: int, different: list[str], drifted: list[str], *, expired: int
) -> tuple[str, str]:
    """What was found and, unless all is well, what to do about it."""
    remedy = ""
    if drifted:
        words = f"the features of window {newest} are not what its validated tables give: {_named(drifted)}"
        remedy = f"Materialize customer_features and then feature_store for {newest} again."
    elif different:
        words = f"of {compared} customers, different: {_named(different)}"
        remedy = (
            "Materialize feature_store for the newest window again. If that does not help, look for a second writer; "
            "a snapshot that it wrote with a later time stays until it is deleted from the online store."
        )
    elif expired:
        days = contract.features.ttl_days
        words = f"{expired} of the customers looked at are served features that are older than {days} days"
        remedy = (
            "They are in no recent window. Remove them from the online store (FeatureStore.forget, or `churn erase` "
            "for a person), or raise features.ttl_days."
        )
    else:
        words = f"{compared} customers of window {newest} are served as they were computed"
    return words, remedy


def _named(different: list[str]) -> str:
    return ", ".join(sorted(set(different)))

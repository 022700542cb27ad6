"""The feature store: the window's definitions registered, and its features brought online."""

import time
from datetime import UTC, datetime

import dagster as dg
import duckdb
import pyarrow as pa

from churn_platform.assets.common import (
    WRITES,
    column_schema,
    feature_columns,
    partitions,
    plot,
    require_window,
    share_known,
)
from churn_platform.contract import Contract
from churn_platform.engine import connection, identifier
from churn_platform.ml import plots
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import MissingVersionError, TableStore
from churn_platform.windows import window

LOG = "feature_store_log"  # which windows the feature store has taken in
MORE_WINDOWS = "churn/more_windows"  # tag of a run that other windows follow at once: only the last goes online
_LOG_SCHEMA = pa.schema(
    [
        ("online", pa.bool_()),
        ("data_fingerprint", pa.string()),
        ("feast_objects", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("online_version", pa.int64()),  # of customer_features, from which the window was last brought online
    ]
)
EVERY = 10  # seconds between two lines on the progress


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The feature store that the features table feeds."""
    return [_feature_store(contract)]


def _feature_store(contract: Contract) -> dg.AssetsDefinition:
    @dg.asset(
        deps=["customer_features"],
        partitions_def=partitions(contract),
        group_name="features",
        kinds={"feast", "redis" if _uses_redis() else "sqlite"},
        owners=[contract.owner],
        pool="feature_store",  # Feast's registry wants one writer at a time
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(feature_columns(contract))},
        description="The window's features in Feast: definitions applied, and, when it is the newest window, "
        "brought online for the endpoint.",
    )
    def feature_store(
        context: dg.AssetExecutionContext,
        tables: dg.ResourceParam[TableStore],
        store: dg.ResourceParam[FeatureStore],
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        require_window(key, tables.windows("customer_features"), "customer_features")
        applied = store.apply(tables.path("customer_features"))
        newest = tables.windows("customer_features")[-1]
        online = key == newest and MORE_WINDOWS not in context.run.tags
        brought: dict[str, int | float] = {}
        with connection() as con:
            tables.read(con, "customer_features", [key])
            known = share_known(con, "customer_features", contract.feature_names)
            version = _online_version(con, tables, contract, key)
            if online:
                # first: forgetting drops the sample that bringing online keeps for the endpoint
                forgotten = store.forget(_removed(con, tables, contract, version))
                brought = _bring_online(context, con, store, window(contract, key).end)
                brought["customers_forgotten"] = forgotten
                version = (key, int(tables.version("customer_features") or 0))
            elif key != newest:
                context.log.info("window %s is older than %s: only definitions applied", key, newest)
            else:
                context.log.info("more windows are about to follow %s: only definitions applied", key)
        entry = {
            "online": online,
            "data_fingerprint": contract.data_fingerprint,
            "feast_objects": ", ".join(applied),
            "at": datetime.now(UTC),
            # a window that is written over without being brought online keeps what the store has of it
            "online_version": version[1] if version is not None and version[0] == key else None,
        }
        tables.write(LOG, pa.Table.from_pylist([entry], _LOG_SCHEMA), key)  # last: says that the window is done
        return dg.MaterializeResult(
            metadata={
                "feast_objects": applied,
                "online": online,
                "newest_window": newest,
                **brought,
                "dagster/column_lineage": dg.TableColumnLineage(
                    {name: [dg.TableColumnDep("customer_features", name)] for name in contract.feature_names}
                ),
                "known_values": plot(
                    plots.shares(list(known), list(known.values()), f"features of {key}", "share known")
                ),
            },
        )

    return feature_store


def _online_version(
    con: duckdb.DuckDBPyConnection, tables: TableStore, contract: Contract, key: str
) -> tuple[str, int] | None:
    """The newest window up to one that was brought online, and from which version of the features; None if unknown.

    Snapshots tables are asked for the window itself: who is missing in a later one has left, and stays as last seen.
    """
    if tables.version(LOG) is None:
        return None
    if "online_version" not in con.table(tables.read(con, LOG)).columns:  # written before it was noted
        return None
    same = "=" if contract.snapshots is not None else "<="
    found = con.execute(
        f"SELECT _window, online_version FROM {LOG} WHERE online_version IS NOT NULL AND _window {same} ? "
        "ORDER BY _window DESC LIMIT 1",
        [key],
    ).fetchall()
    return found[0] if found else None


def _removed(
    con: duckdb.DuckDBPyConnection, tables: TableStore, contract: Contract, before: tuple[str, int] | None
) -> list[str | int]:
    """The customers who went online before and are not in the view `customer_features`: a correction took them out."""
    if before is None:
        return []
    key, version = before
    try:
        tables.require_version("customer_features", version)
    except MissingVersionError:  # pruned, or an erasure removed it
        return []
    tables.read(con, "customer_features", [key], version, view="_online_before")
    customer = identifier(contract.customer.name)
    gone = f"SELECT DISTINCT {customer} FROM _online_before ANTI JOIN customer_features USING ({customer})"
    return [who for (who,) in con.execute(gone).fetchall()]


def _bring_online(
    context: dg.AssetExecutionContext, con: duckdb.DuckDBPyConnection, store: FeatureStore, until: datetime
) -> dict[str, int | float]:
    """Bring the view `customer_features` online; returns what to show of it."""
    started = said = time.monotonic()

    def progress(customers: int) -> None:
        nonlocal said
        if time.monotonic() - said > EVERY:
            said = time.monotonic()
            context.log.info("%s customers are online after %.0f s", f"{customers:,}", said - started)

    counts = store.materialize(con, "customer_features", progress, until)
    seconds = time.monotonic() - started
    context.log.info(
        "%s customers written, %s unchanged, %s kept because the store has them newer, in %.1f s",
        *(f"{count:,}" for count in (counts.written, counts.unchanged, counts.kept_newer)),
        seconds,
    )
    return {
        "customers_written": counts.written,
        "customers_unchanged": counts.unchanged,
        "customers_kept_newer": counts.kept_newer,
        "seconds": seconds,
        "microseconds_per_customer": seconds / max(1, counts.customers) * 1e6,
    }


def _uses_redis() -> bool:
    from churn_platform.settings import settings

    return settings().redis is not None

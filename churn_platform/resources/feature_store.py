"""The feature store: Feast, with what TRAPS taught us about it put right.

- Rows in = rows out: a historical read that loses or doubles entity rows raises.
- An online read gives each value's age with it, because Feast itself serves a value however old it is.
"""

from __future__ import annotations

import importlib
import os
import weakref
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from churn_platform.contract import SNAPSHOT_TIME
from features.online import Layout, Sample, SampleRow

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import duckdb
    import pandas as pd
    from feast import FeatureStore as Feast
    from feast import RepoConfig

    from churn_platform.contract import Contract
    from churn_platform.resources.online_writer import Writer, Written
    from churn_platform.settings import Settings

SAMPLE = 20  # customers whom the endpoint compares its own read of with Feast's


class FeatureStoreError(RuntimeError):
    """The feature store gave an answer that must not be used."""


def repo_config(contract: Contract, settings: Settings, offline: bool) -> RepoConfig:
    """Feast's configuration: embedded stores on a laptop, servers where the settings name them.

    Args:
        contract: gives the project its name.
        settings: say where the stores are.
        offline: whether historical features will be read. The endpoint reads none, and does without the libraries.
    """
    from feast import RepoConfig

    online: dict[str, Any] = {"type": "sqlite", "path": str(settings.online_database)}
    if settings.online_postgres is not None:
        online = _postgres(settings.online_postgres, Layout.of(contract))
    elif settings.redis is not None:
        online = {"type": "redis", "connection_string": f"{settings.redis},socket_timeout=2"}
    return RepoConfig(
        project=contract.name,
        provider="local",
        registry={"registry_type": "sql", "path": settings.registry, "cache_ttl_seconds": 60},
        offline_store={"type": "churn_platform.resources.offline_store.DeltaOfflineStore" if offline else "dask"},
        online_store=online,
        entity_key_serialization_version=3,
    )


def _postgres(url: str, layout: Layout) -> dict[str, Any]:
    """Feast's configuration of a PostgreSQL online store.

    Raises:
        FeatureStoreError: the names do not fit in PostgreSQL, which would cut them off.
    """
    from psycopg.conninfo import conninfo_to_dict

    if len(layout.table) > 63:
        raise FeatureStoreError(
            f"PostgreSQL's names have at most 63 characters and {layout.table} has {len(layout.table)}: give the "
            "contract a shorter name, or use Redis."
        )
    parts = conninfo_to_dict(url)
    found: dict[str, Any] = {
        "type": "postgres",
        "host": parts.get("host", "localhost"),
        "port": int(parts.get("port") or 5432),
        "database": parts.get("dbname") or parts.get("user", "postgres"),
        "user": parts.get("user", "postgres"),
        "password": parts.get("password", ""),
        "sslmode": parts.get("sslmode", "prefer"),
    }
    for name in ("sslkey", "sslcert", "sslrootcert"):
        if name in parts:
            found[f"{name}_path"] = parts[name]
    return found


def import_feast() -> None:
    """Import Feast without its metrics directory.

    On import Feast makes a temporary directory for Prometheus files, names it in the environment and removes it when
    the process ends; a child that outlives its parent then fails in every use of Feast. prometheus_client, imported
    first, keeps its values in memory instead, and the variables are taken back before a child can inherit them.
    """
    variables = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")
    ours = {name for name in variables if name not in os.environ}
    importlib.import_module("prometheus_client")
    importlib.import_module("feast")

    for name in ours:
        os.environ.pop(name, None)


class FeatureStore:
    """The features of customers: then (for training) and now (for serving)."""

    def __init__(self, contract: Contract, settings: Settings, offline: bool = True) -> None:
        self.contract = contract
        self.settings = settings
        self.offline = offline

    @cached_property
    def feast(self) -> Feast:
        """Feast itself, for what this class does not offer."""
        import_feast()
        from feast import FeatureStore as Feast

        self.settings.home.mkdir(parents=True, exist_ok=True)
        store = Feast(config=repo_config(self.contract, self.settings, self.offline))
        if self.settings.online_postgres is not None:
            online: Any = store._get_provider().online_store  # noqa: SLF001 - Feast never closes its connection
            weakref.finalize(store, lambda: online._conn and online._conn.close())  # noqa: SLF001
        return store

    @cached_property
    def definitions(self) -> ModuleType:
        """The Feast repository's module."""
        import_feast()
        from features import definitions

        return definitions

    @cached_property
    def references(self) -> list[str]:
        """Feast's names of the contract's features."""
        return [f"{self._layout.view}:{name}" for name in self.contract.feature_names]

    def apply(self, table: str) -> list[str]:
        """Register entity, view and service; returns their names. `table` is the Delta table of the features."""
        definitions = self.definitions
        view = definitions.feature_view(self.contract, table)
        objects = [definitions.entity(self.contract), view, definitions.feature_service(self.contract, view)]
        if self.settings.redis is None and self.settings.online_postgres is None:
            from churn_platform.resources.online_writer import create_sqlite

            create_sqlite(self.settings.online_database, self._layout)
        self.feast.apply(objects)
        return [thing.name for thing in objects]

    def historical(self, entities: pd.DataFrame) -> pd.DataFrame:
        """The features of customers as of given times.

        Args:
            entities: the customer's key and `event_timestamp` (UTC), one row per customer and time.

        Returns:
            The same rows in the same order, with every feature of the contract beside them; a value that was not
            known then is missing.

        Raises:
            FeatureStoreError: rows were lost or doubled, so the result must not be trained on.
        """
        key = [self.contract.customer.name, "event_timestamp"]
        if entities.duplicated(key).any():
            raise FeatureStoreError("the same customer and time was asked for twice; labels must be unique.")
        found = self.feast.get_historical_features(entity_df=entities, features=self.references).to_df()
        wanted = [*entities.columns, *self.contract.feature_names]
        if len(found) == len(entities) and all(
            found[name].dtype == entities[name].dtype and (found[name].array == entities[name].array).all()
            for name in key
        ):  # as our offline store answers: row for row
            return found if list(found.columns) == wanted else found[wanted]
        joined = entities.merge(found[[*key, *self.contract.feature_names]], on=key, how="left", validate="one_to_one")
        if len(found) != len(entities) or len(joined) != len(entities):
            raise FeatureStoreError(f"{len(entities):,} rows were asked for and {len(found):,} came back.")
        return joined

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.contract)

    def _writer(self) -> Writer:
        from churn_platform.resources.online_writer import PostgresWriter, RedisWriter, SqliteWriter

        if self.settings.online_postgres is not None:
            return PostgresWriter(self.settings.online_postgres, self._layout)
        if self.settings.redis is not None:
            return RedisWriter(self.feast.config, self._layout)
        return SqliteWriter(self.settings.online_database, self._layout)

    def materialize(
        self,
        con: duckdb.DuckDBPyConnection,
        view: str,
        progress: Callable[[int], None] = lambda _: None,
        until: datetime | None = None,
    ) -> Written:
        """Bring features online: the newest row of each customer of a view, unless the store has a later one.

        It may be killed and done again. Readers meanwhile see one snapshot of each customer, the old or the new.

        Args:
            con: has the view.
            view: rows of the features table, as `customer_features` has them.
            progress: is told how many customers were looked at, a few times a second.
            until: a window's end. What the store holds of the window gives way to the view, also where a correction
                has moved a customer's row to an earlier time; only what is later than the window stays.

        Returns:
            How many customers were written, were there already, or are kept because the store has them newer.

        Raises:
            OnlineStoreError: the definitions have not been applied.
        """
        from churn_platform.resources import online_writer

        writer = self._writer()
        writer.drop_samples()  # of values that may be others from now on
        counts = online_writer.materialize(con, view, self._layout, writer, progress, until=until)
        writer.keep_sample(self._sample(con, view).to_json())
        return counts

    def _sample(self, con: duckdb.DuckDBPyConnection, view: str) -> Sample:
        """What Feast reads of a few customers of a view, always the same ones of the same view."""
        import feast
        import pyarrow as pa

        from churn_platform.engine import identifier
        from churn_platform.resources.online_writer import entity_keys

        key = identifier(self.contract.customer.name)
        kind = "BIGINT" if self._layout.integer_customers else "VARCHAR"
        chosen = con.execute(
            f"SELECT CAST({key} AS {kind}) FROM {identifier(view)} ORDER BY hash({key}) LIMIT {SAMPLE}"
        ).fetchall()
        customers = list(dict.fromkeys(customer for (customer,) in chosen))  # each once
        keys = entity_keys(pa.array(customers, pa.int64() if kind == "BIGINT" else pa.string()), self._layout)
        rows = [
            SampleRow(key.hex(), row.pop(SNAPSHOT_TIME).timestamp(), list(row.values()))
            for key, row in zip(keys.to_pylist(), self.online(customers), strict=True)
            if row is not None
        ]
        return Sample(feast.__version__, self.contract.feature_names, rows)

    def forget(self, customers: list[Any]) -> int:
        """Remove customers from the online store, all versions of their features; returns how many were there.

        On SQLite their bytes are gone from the file as well. Redis drops them from memory; what it saved to disk
        before (RDB, AOF) is its operator's to write anew, as PostgreSQL's log and backups are. The sample that Feast
        read goes too, until features are brought online again.
        """
        import pyarrow as pa

        from churn_platform.resources import online_writer

        kind = pa.int64() if self._layout.integer_customers else pa.string()
        keys = online_writer.entity_keys(pa.array(customers, kind), self._layout)
        if not customers:
            return 0
        writer = self._writer()
        writer.drop_samples()
        return writer.delete(keys.to_pylist())

    def online(self, customers: list[Any]) -> list[dict[str, Any] | None]:
        """What is served for customers: the features and `snapshot_time`, or None for one who is not known."""
        if not customers:
            return []
        key = self.contract.customer.name
        answer = self.feast.get_online_features(
            features=self.references, entity_rows=[{key: customer} for customer in customers]
        )
        values, names = answer.to_dict(), self.contract.feature_names
        columns = dict(zip(answer.proto.metadata.feature_names.val, answer.proto.results, strict=True))
        times = [columns[name].event_timestamps for name in names]
        rows: list[dict[str, Any] | None] = []
        for position in range(len(customers)):
            stamps = [(column[position].seconds, column[position].nanos) for column in times]
            seconds, nanos = max(stamps)
            if not seconds:
                rows.append(None)
                continue
            row = {name: values[name][position] for name in names}
            row[SNAPSHOT_TIME] = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=nanos // 1000)
            rows.append(row)
        return rows

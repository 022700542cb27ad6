"""Feast's DuckDB offline store, reading Delta tables through delta-rs.

Feast's own reader needs DuckDB's `delta` extension, which DuckDB downloads when first used: not to be had in a closed
network. Here a table is scanned as an Arrow dataset instead; all else is Feast's own code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ibis
from deltalake import DeltaTable
from feast.infra.offline_stores import ibis as joins
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig, _write_data_source

if TYPE_CHECKING:
    from feast.infra.offline_stores.file_source import FileSource
    from feast.infra.offline_stores.offline_store import RetrievalJob


class DeltaOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Feast finds the configuration of a store by this name."""

    type: str = "churn_platform.resources.offline_store.DeltaOfflineStore"


def _read(source: FileSource, _repo_path: str) -> ibis.Table:
    return ibis.memtable(DeltaTable(source.path).to_pyarrow_dataset())


_PARTS: dict[str, Any] = {"data_source_reader": _read, "data_source_writer": _write_data_source}


class DeltaOfflineStore(DuckDBOfflineStore):
    """See the module's text. Feast calls these with keyword arguments, which are handed on as they come."""

    @staticmethod
    def pull_latest_from_table_or_query(**arguments: Any) -> RetrievalJob:  # type: ignore[override]
        """The newest row of each customer in a stretch of time."""
        return joins.pull_latest_from_table_or_query_ibis(**arguments, **_PARTS)

    @staticmethod
    def pull_all_from_table_or_query(**arguments: Any) -> RetrievalJob:  # type: ignore[override]
        """Every row in a stretch of time."""
        return joins.pull_all_from_table_or_query_ibis(**arguments, **_PARTS)

    @staticmethod
    def get_historical_features(**arguments: Any) -> RetrievalJob:  # type: ignore[override]
        """The features of customers as of given times."""
        return joins.get_historical_features_ibis(**arguments, **_PARTS)

"""Feast's DuckDB offline store, reading Delta tables through delta-rs, with a point-in-time join of its own.

Feast's own reader needs DuckDB's `delta` extension, which DuckDB downloads when first used: not to be had in a closed
network. Here a table is scanned as an Arrow dataset instead.

Feast's own join pairs every entity row with every earlier snapshot and then keeps one of them, so its cost grows with
the number of snapshots. Here DuckDB's ASOF join finds the one row at once. The meaning is Feast's:

- the newest row at or before the entity row's time counts; times without a zone are in UTC;
- where that row is older than the view's ttl its values are missing, and the entity row stays;
- of rows with equal times the one with the newest `created` time counts. If there is no such column, or those are
  equal too, where Feast picks any, here the first in the order of the features' values counts (missing ones last);
- rows out are rows in, in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
from deltalake import DeltaTable
from feast.infra.offline_stores import ibis as joins
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig, _write_data_source
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView

from churn_platform.engine import connection, identifier, literal
from churn_platform.resources.storage import make_view

if TYPE_CHECKING:
    from datetime import timedelta

    import duckdb
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
        """The features of customers as of given times; what the ASOF join does not know is left to Feast's own."""
        views, references, entities = (arguments[name] for name in ("feature_views", "feature_refs", "entity_df"))
        on_demand = OnDemandFeatureView.get_requested_odfvs(references, arguments["project"], arguments["registry"])
        mapped = any(view.batch_source.field_mapping for view in views)
        if (
            on_demand
            or mapped
            or arguments.get("filter_by_created_timestamp")
            or not isinstance(entities, pd.DataFrame)
        ):
            return joins.get_historical_features_ibis(**arguments, **_PARTS)
        return _AsOfJob(arguments["config"], views, references, entities, arguments.get("full_feature_names", False))


class _AsOfJob(joins.IbisRetrievalJob):
    """A point-in-time join that is yet to be made, in Feast's terms."""

    def __init__(
        self, config: Any, views: list[Any], references: list[str], entities: pd.DataFrame, full_names: bool
    ) -> None:
        self.views, self.references, self.entities = views, references, entities
        self.time = offline_utils.infer_event_timestamp_from_entity_df(dict(entities.dtypes))
        metadata = RetrievalMetadata(
            features=references,
            keys=[name for name in entities.columns if name != self.time],
            min_event_timestamp=entities[self.time].min(),
            max_event_timestamp=entities[self.time].max(),
        )
        super().__init__(None, [], full_names, metadata, _write_data_source, None, None, str(config.repo_path))

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        with connection() as con:
            # an Arrow scan says that it expects one row, and an ASOF join to so few would loop over all pairs
            con.execute("SET asof_loop_join_threshold = 0")
            rows = pa.Table.from_pandas(self.entities, preserve_index=False)
            con.register("_entities", rows.append_column("_place", pa.array(np.arange(len(rows)))))
            time = f"CAST(e.{identifier(self.time)} AS TIMESTAMPTZ)"
            between = con.execute(f"SELECT min({time}), max({time}) FROM _entities e").fetchall()[0]
            selected = [
                f"{time} AS {identifier(name)}" if name == self.time else f"e.{identifier(name)}"
                for name in self.entities.columns
            ]
            joined = "_entities e"
            for number, view in enumerate(self.views):
                names = self._names(view)
                source = _within(con, f"_view_{number}", view, list(names), between)
                keys = view.projection.join_key_map or {column.name: column.name for column in view.entity_columns}
                on = [f"e.{identifier(mine)} = {source}.{identifier(theirs)}" for theirs, mine in keys.items()]
                observed = f"{source}.{identifier(view.batch_source.timestamp_field)}"
                joined += f" ASOF LEFT JOIN {source} ON {' AND '.join([*on, f'{time} >= {observed}'])}"
                fresh = f"{observed} >= {time} - {_interval(view.ttl)}" if view.ttl else "true"
                selected += [
                    f"CASE WHEN {fresh} THEN {source}.{identifier(name)} END AS {identifier(shown)}"
                    for name, shown in names.items()
                ]
            found = con.sql(f"SELECT {', '.join(selected)}, e._place FROM {joined}").to_arrow_table()
        # put back in order out here: DuckDB's sort of whole rows takes a fifth more memory
        return found.drop_columns(["_place"]).take(np.argsort(found["_place"].to_numpy()))

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        found: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return found

    def _names(self, view: Any) -> dict[str, str]:
        """The features that are asked for of a view, and what they are called in the answer."""
        prefix = f"{view.projection.name_to_use()}:"
        names = [reference.removeprefix(prefix) for reference in self.references if reference.startswith(prefix)]
        shown = f"{view.projection.name_alias or view.name}__" if self.full_feature_names else ""
        return {name: f"{shown}{name}" for name in names}

    def persist(self, *arguments: Any, **named: Any) -> None:
        """Feast's saved data sets."""
        self.table = ibis.memtable(self._to_arrow_internal())
        super().persist(*arguments, **named)


def _within(con: duckdb.DuckDBPyConnection, called: str, view: Any, names: list[str], between: tuple[Any, Any]) -> str:
    """Make a view of the rows that may be asked for, one for each key and time; returns its name."""
    source, (first, last) = view.batch_source, between
    keys = list(view.projection.join_key_map or [column.name for column in view.entity_columns])
    make_view(con, f"{called}_table", DeltaTable(source.path))
    stored = con.sql(f"SELECT * FROM {called}_table LIMIT 0")
    time = identifier(source.timestamp_field)
    # as it is stored wherever possible: a filter on the column itself is applied before it is read
    kind = str(dict(zip(stored.columns, stored.types, strict=True))[source.timestamp_field])
    instant = time if kind == "TIMESTAMP WITH TIME ZONE" else f"CAST({time} AS TIMESTAMPTZ)"
    where = f"{instant} <= {_moment(last)}"
    if view.ttl:
        where += f" AND {instant} >= {_moment(first)} - {_interval(view.ttl)}"
    columns = ", ".join(map(identifier, [*keys, *names]))
    created = [f"{identifier(source.created_timestamp_column)} DESC"] if source.created_timestamp_column else []
    rows = f"SELECT {columns}, {instant} AS {time} FROM {called}_table WHERE {where}"
    by = ", ".join(map(identifier, [*keys, source.timestamp_field]))
    if con.execute(f"SELECT 1 FROM ({rows}) GROUP BY {by} HAVING count(*) > 1 LIMIT 1").fetchall():
        order = ", ".join([*created, *(f"{identifier(name)} NULLS LAST" for name in names)])
        rows += f" QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY {order}) = 1"
    con.execute(f"CREATE TEMP VIEW {called} AS {rows}")
    return called


def _moment(value: Any) -> str:
    return "NULL::TIMESTAMPTZ" if value is None else f"TIMESTAMPTZ {literal(value.isoformat())}"


def _interval(length: timedelta) -> str:
    """So long, to the microsecond; a day of the calendar may be something else."""
    microseconds = (length.days * 86_400 + length.seconds) * 1_000_000 + length.microseconds
    return f"to_microseconds({microseconds})"

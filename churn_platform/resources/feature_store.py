"""The feature store: Feast, with what TRAPS taught us about it put right.

- Rows in = rows out: a historical read that loses or doubles entity rows raises.
- An online read gives each value's age with it, because Feast itself serves a value however old it is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from churn_platform.contract import SNAPSHOT_TIME

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore as Feast
    from feast import RepoConfig

    from churn_platform.contract import Contract
    from churn_platform.settings import Settings


class FeatureStoreError(RuntimeError):
    """The feature store gave an answer that must not be used."""


def repo_config(contract: Contract, settings: Settings) -> RepoConfig:
    """Feast's configuration: embedded stores on a laptop, servers where the settings name them."""
    from feast import RepoConfig

    online: dict[str, Any] = {"type": "sqlite", "path": str(settings.home / "online_store.db")}
    if settings.redis is not None:
        online = {"type": "redis", "connection_string": settings.redis}
    return RepoConfig(
        project=contract.name,
        provider="local",
        registry={"registry_type": "sql", "path": settings.registry, "cache_ttl_seconds": 60},
        offline_store={"type": "churn_platform.resources.offline_store.DeltaOfflineStore"},
        online_store=online,
        entity_key_serialization_version=3,
    )


class FeatureStore:
    """The features of customers: then (for training) and now (for serving)."""

    def __init__(self, contract: Contract, settings: Settings) -> None:
        self.contract = contract
        self.settings = settings

    @cached_property
    def feast(self) -> Feast:
        from feast import FeatureStore as Feast

        self.settings.home.mkdir(parents=True, exist_ok=True)
        return Feast(config=repo_config(self.contract, self.settings))

    @property
    def references(self) -> list[str]:
        """Feast's names of the contract's features."""
        from features.definitions import view_name

        return [f"{view_name(self.contract)}:{name}" for name in self.contract.feature_names]

    def apply(self, table: str) -> list[str]:
        """Register entity, view and service; returns their names. `table` is the Delta table of the features."""
        from features import definitions

        view = definitions.feature_view(self.contract, table)
        objects = [definitions.entity(self.contract), view, definitions.feature_service(self.contract, view)]
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
        joined = entities.merge(found[[*key, *self.contract.feature_names]], on=key, how="left", validate="one_to_one")
        if len(found) != len(entities) or len(joined) != len(entities):
            raise FeatureStoreError(f"{len(entities):,} rows were asked for and {len(found):,} came back.")
        return joined

    def materialize_between(self, start: datetime, end: datetime) -> None:
        """Bring online, for each customer, the newest features of a stretch of time."""
        from features.definitions import view_name

        self.feast.materialize(start, end, feature_views=[view_name(self.contract)])

    def online(self, customers: list[Any]) -> list[dict[str, Any] | None]:
        """What is served for customers: the features and `snapshot_time`, or None for one who is not known."""
        if not customers:
            return []
        key = self.contract.customer.name
        answer = self.feast.get_online_features(
            features=self.references, entity_rows=[{key: customer} for customer in customers]
        ).to_dict(include_event_timestamps=True)
        names = self.contract.feature_names
        rows: list[dict[str, Any] | None] = []
        for position in range(len(customers)):
            stamps = [answer[f"{name}__ts"][position] for name in names]
            if not any(stamps):
                rows.append(None)
                continue
            row = {name: answer[name][position] for name in names}
            row[SNAPSHOT_TIME] = datetime.fromtimestamp(max(stamps), UTC)
            rows.append(row)
        return rows

"""Feast's entity, feature view and feature service, derived from the contract.

The feature view carries the version of the definitions in its name, so that a changed meaning is a new feature and a
model goes on reading the features that it was trained on.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Float64, String

from churn_platform import settings
from churn_platform.contract import SNAPSHOT_TIME
from features.online import view_name

if TYPE_CHECKING:
    from churn_platform.contract import Contract


def service_name(contract: Contract) -> str:
    """The feature service's name: what a model of this contract reads."""
    return f"{contract.name}_churn_v{contract.features.version}"


def entity(contract: Contract) -> Entity:
    """The customer."""
    integer = contract.customer.type == "integer"
    return Entity(
        name=contract.customer.name,
        join_keys=[contract.customer.name],
        value_type=ValueType.INT64 if integer else ValueType.STRING,
        description="A customer",
    )


def feature_view(contract: Contract, table: str) -> FeatureView:
    """All features of a customer at a snapshot; `table` is where the Delta table of them lies."""
    return FeatureView(
        name=view_name(contract),
        entities=[entity(contract)],
        ttl=timedelta(days=contract.features.ttl_days),
        schema=[
            Field(
                name=name,
                dtype=String if contract.is_categorical(name) else Float64,
                description=contract.describe_feature(name),
            )
            for name in contract.feature_names
        ],
        source=FileSource(
            name=f"{view_name(contract)}_table", path=table, timestamp_field=SNAPSHOT_TIME, file_format=DeltaFormat()
        ),
        tags={"contract": contract.name, "definitions": str(contract.features.version)},
        description="What was known of a customer at a snapshot, computed from rows before it",
        owner=contract.owner,
    )


def feature_service(contract: Contract, view: FeatureView) -> FeatureService:
    """The features that a model of this contract reads."""
    return FeatureService(
        name=service_name(contract),
        features=[view],
        tags={"contract": contract.name, "fingerprint": contract.fingerprint},
        description="The inputs of the churn model",
        owner=contract.owner,
    )


# What the feast command finds here.
customer = entity(settings.contract())
customer_features = feature_view(
    settings.contract(), f"{settings.settings().tables_of(settings.contract())}/customer_features"
)
churn_inputs = feature_service(settings.contract(), customer_features)

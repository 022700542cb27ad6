"""The asset graph, one module per stage, in the order in which data flows through them."""

from collections.abc import Sequence

import dagster as dg

from churn_platform.assets import (
    decisions,
    feature_store,
    features,
    ingestion,
    labels,
    monitoring,
    prediction_log,
    promotion,
    replay,
    scoring,
    training,
    validation,
)
from churn_platform.contract import Contract


def assets(contract: Contract) -> Sequence[dg.AssetsDefinition | dg.AssetSpec]:
    """Every asset of a contract's graph."""
    return [
        *ingestion.assets(contract),
        *validation.assets(contract),
        *features.assets(contract),
        *feature_store.assets(contract),
        *labels.assets(contract),
        *training.assets(contract),
        *promotion.assets(contract),
        *scoring.assets(contract),
        *prediction_log.assets(contract),
        *decisions.assets(contract),
        *monitoring.assets(contract),
        *replay.assets(contract),
    ]

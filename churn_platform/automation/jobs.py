"""The jobs: a window's cycle, with and without a champion, the retrain, and the landing of the endpoint's answers."""

from typing import TypeAlias

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from churn_platform.assets.common import WRITES
from churn_platform.contract import Contract

Jobs: TypeAlias = list[UnresolvedAssetJobDefinition]

PREPARE = "prepare_window"
CYCLE = "window_cycle"
SCORE = "score_window"
RETRAIN = "retrain"
LAND_PREDICTIONS = "land_predictions"


def jobs(contract: Contract) -> Jobs:
    """Every job of a contract."""
    tables = contract.tables.items()
    data = [
        *(f"raw_{name}" for name in tables),
        *(f"validated_{name}" for name in tables),
        "customer_features",
        "feature_store",
        "churn_labels",
    ]
    watch = ["churn_scores", "drift_report", "model_performance"]
    if contract.value is not None:
        watch += ["retention_list", "retention_effect"]
    return [
        dg.define_asset_job(
            PREPARE,
            selection=dg.AssetSelection.assets(*data),
            tags=WRITES,
            description="A window's data, features and labels. For history that is older than the first champion.",
        ),
        dg.define_asset_job(
            CYCLE,
            selection=dg.AssetSelection.assets(*data, *watch),
            tags=WRITES,
            description="All that happens when a window has landed, from raw data to scores, drift and performance.",
        ),
        dg.define_asset_job(
            SCORE,
            selection=dg.AssetSelection.assets(*watch),
            tags=WRITES,
            description="Scores, drift and performance of a window whose data is there already.",
        ),
        dg.define_asset_job(
            RETRAIN,
            selection=dg.AssetSelection.assets("training_set", "candidate_model", "champion"),
            tags=WRITES,
            description="Train a candidate on all mature labels, judge it by every gate, and promote it if all pass.",
        ),
        dg.define_asset_job(
            LAND_PREDICTIONS,
            selection=dg.AssetSelection.assets("prediction_log"),
            tags=WRITES,
            description="Bring what the endpoint answered into the table prediction_log.",
        ),
    ]

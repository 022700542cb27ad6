"""What things are called in the model registry. The endpoint reads it without MLflow, so nothing is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from churn_platform.contract import Contract

CHAMPION = "champion"  # alias: what is served
CHALLENGER = "challenger"  # alias: the newest candidate
CANARY = "canary"  # alias: answers for a share of the customers
CANARY_SHARE = "canary.share"  # tag of a version: that share, above 0 and below 1
FEATURES_VERSION = "features_version"  # tag of a version: the contract's features.version that it was trained on
COMPILED = "compiled_model.npz"  # artifact of a version's run: the model as it is served


def model_name(contract: Contract) -> str:
    """The registered model of a contract."""
    return f"{contract.name}_churn"

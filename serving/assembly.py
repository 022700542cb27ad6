"""Puts the endpoint together in a worker."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from serving import online
from serving.front import Endpoints
from serving.keys import Keys, RateLimit
from serving.lineup import Keeper
from serving.metrics import Metrics
from serving.prediction_log import PredictionLog
from serving.registry import Cache, registry
from serving.scorer import Limits, Scorer, is_hashed
from serving.upkeep import AccessLog, Upkeep

if TYPE_CHECKING:
    from churn_platform.contract import Contract
    from churn_platform.settings import Settings
    from serving.settings import ServingSettings


def assemble(contract: Contract, settings: Settings, how: ServingSettings) -> Endpoints:
    """The endpoint, ready to be started by its front."""
    metrics = Metrics()
    store = online.connect(contract, settings, deadline=how.store_deadline)
    cache = Cache(settings.home / "serving" / contract.name)
    keeper = Keeper(contract, registry(contract, settings), cache, metrics.champion_changed)
    predictions = None
    if how.log_predictions:
        predictions = PredictionLog(
            settings.predictions_of(contract),
            settings.home / "prediction_spool" / contract.name,
            how.segment_seconds,
            metrics.not_logged.inc,
        )
    scorer = Scorer(
        contract,
        store,
        lineup=lambda: keeper.lineup,
        key=settings.key if is_hashed(contract) else None,
        keep=None if predictions is None else predictions.add,
        limits=Limits(how.queue, how.batch, how.deadline),
    )
    upkeep = Upkeep(
        contract,
        keeper=keeper,
        store=store,
        scorer=scorer,
        metrics=metrics,
        predictions=predictions,
        interval=how.refresh_seconds,
    )
    # What is here now stays for good: the collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    return Endpoints(
        contract,
        scorer=scorer,
        upkeep=upkeep,
        metrics=metrics,
        keys=None if how.api_keys_file is None else Keys(how.api_keys_file),
        limit=None if how.requests_per_second is None else RateLimit(how.requests_per_second, how.burst),
        access_log=None if how.access_log == "off" else AccessLog(),
        only_errors=how.access_log == "errors",
        drain_seconds=how.drain_seconds,
    )

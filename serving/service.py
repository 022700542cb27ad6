"""The Bento service. Start it with `bentoml serve serving.service:ChurnService --port 8080`.

BentoML imports this module twice, in the process that supervises and in each worker; only a worker serves. So
everything heavy is imported in the worker, when it begins, and not at the top of a module.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Before numpy is imported. One row is one thread's work, and threads that wait for each other cost five sixths of
# the throughput (measured with gradient boosting at 32 connections).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# MLflow's own patience (seven retries of two minutes) would leave the refresh hanging while the registry is away.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import bentoml
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from churn_platform.settings import contract, settings

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class ServingSettings(BaseSettings):
    """How the service runs. Every field is the environment variable CHURN_SERVING_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="CHURN_SERVING_", extra="ignore", frozen=True)

    refresh_seconds: float = Field(5, gt=0, description="between two looks at the registry's champion")
    workers: int = Field(1, ge=1, description="processes that serve; each loads the model")


CONFIGURED = ServingSettings()


async def http(scope: Scope, receive: Receive, send: Send) -> None:
    """What BentoML mounts. A plain function and not the app itself, for two reasons.

    The app is made in the worker; and BentoML passes by a mounted Starlette app on paths that it does not know,
    which would then be answered by BentoML's own page in BentoML's own form.
    """
    await bentoml.get_current_service().app(scope, receive, send)


@bentoml.service(workers=CONFIGURED.workers, traffic={"timeout": 30})
@bentoml.asgi_app(http, path="/", name="churn")
class ChurnService:
    """Serves the champion of the contract. Not ready, and says so, until there is one."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Fail in the supervisor, once and in words; a failing worker would be started again for ever."""
        try:
            contract()
        except ValueError as error:
            raise SystemExit(str(error)) from None

    def __init__(self) -> None:
        from churn_platform.resources.feature_store import FeatureStore
        from churn_platform.resources.tracking import Tracking
        from serving import app
        from serving.predictor import Predictor, is_hashed

        metrics = app.Metrics()
        self.predictor = Predictor(
            contract(),
            tracking=Tracking(contract(), settings()),
            connect=lambda: FeatureStore(contract(), settings(), offline=False),
            key=settings().key if is_hashed(contract()) else None,
            on_champion=metrics.champion_changed,
        )
        self.app = app.build(contract(), self.predictor, metrics)
        # In a thread: /livez answers from the first moment, while the model is still loading.
        self.predictor.start(CONFIGURED.refresh_seconds)

    def __is_ready__(self) -> bool:
        """What BentoML's /readyz asks."""
        return not self.predictor.problems

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Let go of the registry."""
        self.predictor.stop()

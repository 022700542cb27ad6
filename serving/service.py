"""The Bento service. Start it with `bentoml serve serving.service:ChurnService --port 8080`.

BentoML imports this module twice, in the process that supervises and in each worker; only a worker serves. So
everything heavy is imported in the worker, when it begins, and not at the top of a module.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before numpy is imported: one core is one worker's, and its threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import bentoml
from _bentoml_sdk import Service  # no more public than this: hence the bound on BentoML

from churn_platform.settings import contract, settings
from serving.settings import serving_settings

if TYPE_CHECKING:
    from serving.front import Endpoints


class FrontedService(Service):  # type: ignore[misc] # BentoML has no types
    """A service whose app stands behind ours (serving/front.py says why)."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """BentoML's app, with ours before it."""
        from serving.front import Front

        return Front(super().to_asgi(is_main), lambda: bentoml.get_current_service().endpoints)


@bentoml.service(
    service_class=FrontedService,
    workers=serving_settings().workers,
    traffic={"timeout": 30},
    logging={"access": {"enabled": False}},
)
class ChurnService:
    """Serves the champion of the contract. Not ready, and says so, until there is one."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Fail in the supervisor, once and in words; a failing worker would be started again for ever."""
        from serving.keys import KeysError, read
        from serving.registry import RegistryError, registry

        try:
            found = settings("endpoint")
            registry(contract(), found)
            keys = serving_settings().api_keys_file
            if keys is not None:
                read(keys)
            elif found.environment != "local":
                raise SystemExit(
                    f"CHURN_ENVIRONMENT={found.environment} asks for API keys: set CHURN_SERVING_API_KEYS_FILE "
                    "to a file of lines name:sha256. `churn api-key NAME` makes such a line."
                )
        except (ValueError, KeysError, RegistryError) as error:
            raise SystemExit(str(error)) from None

    def __init__(self) -> None:
        from serving.assembly import assemble

        self.endpoints: Endpoints = assemble(contract(), settings("endpoint"), serving_settings())

    def __is_ready__(self) -> bool:
        """What BentoML's /readyz asks."""
        return not self.endpoints.problems

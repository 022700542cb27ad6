"""A plain BentoML service around the specification's code: `bentoml serve benchmarks.serving.plain:PlainService`."""

from __future__ import annotations

import warnings
from typing import Any

import bentoml


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class PlainService:
    """As BentoML's own examples are written."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore")  # BentoML would write one of its own at every request
        # only the worker imports Feast and the model, not the process that supervises it
        from benchmarks.serving.specification import Answering

        self.answering = Answering()

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, user_id: str) -> dict[str, Any]:
        """Answer for a customer."""
        return self.answering.predict(user_id)

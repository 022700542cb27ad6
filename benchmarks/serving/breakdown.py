"""Where the time goes in our endpoint: `python -m benchmarks.serving --breakdown`.

CPU microseconds a request, at 64 connections. The HTTP server is measured from outside, by requests that ask for no
prediction; the parts of a prediction in this process, in batches as they arise under that load, no customer twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from benchmarks.serving.world import FEATURES, Paths
from serving import feast_format, schema
from serving.scorer import Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving.front import Endpoints

BATCH = 32
_BATCHES = 300  # of each part


async def _parts(paths: Paths) -> dict[str, float]:
    """CPU microseconds a request of each part of a prediction."""
    from churn_platform.settings import contract, settings
    from serving.assembly import assemble
    from serving.settings import serving_settings

    endpoints = assemble(contract(), settings("endpoint"), serving_settings())
    endpoints.upkeep.start()
    try:
        return await _measured(endpoints, schema.request_model(contract()), paths)
    finally:
        await endpoints.upkeep.stop()


async def _measured(endpoints: Endpoints, request_model: Any, paths: Paths) -> dict[str, float]:
    while (champion := endpoints.upkeep.lineup.champion) is None:
        await asyncio.sleep(0.05)
    scorer, model = endpoints.scorer, champion.model
    with paths.bodies("customer").open() as lines:
        bodies = [line.strip().encode() for line in islice(lines, BATCH * _BATCHES)]
    with paths.bodies("features").open() as lines:
        described = [json.loads(line)["inputs"][0] for line in islice(lines, BATCH * _BATCHES)]
    customers = [json.loads(body)["user_id"] for body in bodies]
    messages = [[b"\x29" + struct.pack("<d", value) for value in row] for row in described]

    async def timed(work: Callable[[slice], Any]) -> float:
        """CPU microseconds a request of `work`, which does a batch; also of what it leaves to the loop."""
        for warm in (True, False):
            started = time.process_time()
            for start in range(0, len(bodies) // (10 if warm else 1), BATCH):
                done = work(slice(start, start + BATCH))
                if asyncio.iscoroutine(done):
                    await done
                    await asyncio.sleep(0)
        return (time.process_time() - started) / len(bodies) * 1e6

    answers: list[Any] = []

    async def answer(part: slice) -> None:
        answers[part] = await scorer.answer([Question(customer) for customer in customers[part]])

    reading = await timed(lambda part: [schema.read_request(request_model, body) for body in bodies[part]])
    stored = await timed(lambda part: scorer.store.read(customers[part]))
    decoding = await timed(lambda part: [feast_format.values(row) for row in messages[part]])
    scoring = await timed(lambda part: model.probabilities(np.array(described[part], dtype="float64"), []))
    answering = await timed(answer)
    encode = msgspec.json.Encoder().encode
    writing = await timed(lambda part: [encode(one) for one in answers[part]])
    return {
        "JSON in, checked": reading,
        "the online store: one round trip for 32": stored - decoding,
        f"decoding {len(FEATURES)} features": decoding,
        "the model, on 32 rows": scoring,
        "the answer, and its line in the prediction log": answering - stored - scoring,
        "JSON out": writing,
    }


def main() -> None:
    """Print the parts as JSON."""
    with suppress(KeyboardInterrupt):
        parts = asyncio.run(_parts(Paths(Path(os.environ["BENCH_SERVING_FOLDER"]))))
        sys.stdout.write(json.dumps(parts) + "\n")


if __name__ == "__main__":
    main()

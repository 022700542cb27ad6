"""What goes on beside the requests: looking at the registry and the online store, writing logs, stopping in order."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from serving.online import NO_SAMPLE, StoreUnavailableError, check_sample
from serving.scorer import whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from churn_platform.contract import Contract
    from serving.lineup import Keeper, LineUp
    from serving.metrics import Metrics
    from serving.online import OnlineStore
    from serving.prediction_log import PredictionLog
    from serving.scorer import Scorer

log = logging.getLogger("bentoml.churn")

STALE_AFTER = 60.0  # seconds without an answer from the online store after which we do not claim to be ready
_COUNT_EVERY = 0.25  # seconds
_SAMPLE_EVERY = 300.0  # seconds between two comparisons with what Feast said


class Upkeep:
    """Looks after everything that the endpoints rest on.

    Args:
        contract: gives the customers their type.
        keeper: keeps the line-up.
        store: the online store.
        scorer: whose queue is shown in the metrics.
        metrics: shows it.
        predictions: the prediction log, or None.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        keeper: Keeper,
        store: OnlineStore,
        scorer: Scorer,
        metrics: Metrics,
        predictions: PredictionLog | None,
        interval: float,
    ) -> None:
        self.contract = contract
        self.keeper = keeper
        self.store = store
        self.scorer = scorer
        self.metrics = metrics
        self.predictions = predictions
        self.interval = interval
        self._store_answered = -math.inf  # on the monotonic clock
        self._store_problem = ""
        self._sample_problem = ""
        self._sample_checked = -math.inf
        self._unchecked = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def lineup(self) -> LineUp:
        """Who answers."""
        return self.keeper.lineup

    @property
    def from_cache(self) -> bool:
        """Whether the champion is the last good one, and the registry has not been heard since."""
        return self.keeper.from_cache

    @property
    def store_answers(self) -> bool:
        """Whether the online store answered when it was last looked at, and that was not long ago."""
        return time.monotonic() - self._store_answered < STALE_AFTER

    @property
    def problems(self) -> list[str]:
        """What keeps us from answering, in words that anyone may read; empty when we are ready."""
        found = []
        if self.lineup.champion is None:
            found.append("No champion is loaded: the registry has none yet, or it cannot be reached or loaded.")
        if not self.store_answers:
            found.append("The online feature store does not answer, or has no features of this contract yet.")
        if self._sample_problem:
            found.append("The online features are read otherwise than Feast reads them; operators find it in the log.")
        return found

    @property
    def warnings(self) -> list[str]:
        """What is not as it should be, and keeps nobody from being answered."""
        found = []
        champion = self.lineup.champion
        if champion is not None and self.keeper.registry_problem:
            whose = "the last good model of this machine" if self.from_cache else "the model that is loaded"
            found.append(
                "The registry cannot be asked or names no usable champion: "
                f"{whose}, version {champion.version}, serves."
            )
        if self._unchecked:
            found.append("No sample of Feast's own answers to compare with: features were brought online without one.")
        return found

    def start(self) -> None:
        """Begin. Called in the event loop."""
        if self.predictions is not None:
            self.predictions.start()
        self._tasks = [asyncio.create_task(work()) for work in (self._watch_registry, self._watch_store, self._count)]

    async def stop(self) -> None:
        """End: what was answered is written first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.metrics.flush()
        if self.predictions is not None:
            await asyncio.to_thread(self.predictions.close)
        await self.store.close()

    async def _watch_registry(self) -> None:
        while True:
            await asyncio.to_thread(self.keeper.look)
            await asyncio.sleep(self.interval)

    async def _watch_store(self) -> None:
        while True:
            await self.look_at_store()
            # while it is away we look more often: it is missed
            await asyncio.sleep(self.interval if self.store_answers else min(1.0, self.interval))

    async def _count(self) -> None:
        while True:
            self.metrics.waiting.set(self.scorer.waiting)
            self.metrics.flush()
            await asyncio.sleep(_COUNT_EVERY)

    async def look_at_store(self) -> None:
        """Ask the online store for nobody, and now and then compare what it says with what Feast said."""
        nobody: str | int = -1 if self.contract.customer.type == "integer" else "-"
        try:
            await self.store.read([nobody])
            if time.monotonic() - self._sample_checked > _SAMPLE_EVERY:
                said = await check_sample(self.store)
                self._unchecked = said == NO_SAMPLE
                self._sample_checked = -math.inf if self._unchecked else time.monotonic()
                self._sample_problem = "" if self._unchecked else said
                if self._sample_problem:
                    log.error("features: %s", self._sample_problem)
        except StoreUnavailableError as error:
            self._store_answered = self._sample_checked = -math.inf
            self._say(f"the online store does not answer: {error}")
        except Exception as error:  # noqa: BLE001 - the watching must survive whatever is wrong
            self._store_answered = -math.inf
            self._say(f"the online store cannot be read: {whereabouts(error)}")
        else:
            self._store_answered = time.monotonic()
            self._say("")

    def _say(self, problem: str) -> None:
        """Log a problem when it appears or changes, and its end; not at every look."""
        before, self._store_problem = self._store_problem, problem
        if problem and problem != before:
            log.warning("features: %s", problem)
        elif before and not problem:
            log.info("features: all is well again")


class AccessLog:
    """A line of JSON for each request, on standard output, written by a thread. Nothing personal is in it."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []
        self._encode = msgspec.json.Encoder().encode
        self._thread = threading.Thread(target=self._keep_writing, name="access-log", daemon=True)
        self._thread.start()

    def __call__(self, line: dict[str, Any]) -> None:
        """Take a line. Never waits; lines beyond what is written in time are not kept."""
        if len(self._lines) < 100_000:
            line["at"] = time.time()
            self._lines.append(line)

    def _keep_writing(self) -> None:
        while True:
            time.sleep(0.2)
            lines, self._lines = self._lines, []
            if lines:
                sys.stdout.write(b"\n".join(map(self._encode, lines)).decode() + "\n")
                sys.stdout.flush()


def drain_on_sigterm(seconds: float, begin: Callable[[], None]) -> None:
    """At SIGTERM say so first, and leave it to the server's own handler some seconds later.

    Load balancers take that long to send new requests elsewhere. Called in the event loop, after the server has put
    its handler in place.
    """
    loop = asyncio.get_running_loop()
    then = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        begin()
        if callable(then):
            loop.call_later(seconds, then, number, frame)

    signal.signal(signal.SIGTERM, end)

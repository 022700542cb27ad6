"""From customers to answers: features from the online store, a probability from whoever is in the line-up.

Requests that arrive together are read and scored together: one round trip to the store and one call of the model for
all of them. Nobody is waited for. A batch is what has come in while the one before was under way, so a lone request is
answered at once, and under load batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from churn_platform.ml import masking, text
from serving.feast_format import FormatError
from serving.lineup import usable
from serving.online import StoreUnavailableError
from serving.prediction_log import Answered, Ids
from serving.schema import HIGH_RISK, LOW_RISK, RESPONSE_VERSION, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from churn_platform.contract import Contract
    from churn_platform.ml.compiled import CompiledModel
    from serving.lineup import LineUp, Served
    from serving.online import Found, OnlineStore

# A child of BentoML's logger, because that is the one that its workers configure.
log = logging.getLogger("bentoml.churn")

RUNNERS = 2  # batches under way at once: while one waits for the store, the other is scored
REASONS = 3  # that an explained answer names
CHAMPION_ARM, CANARY_ARM = "champion", "canary"

Customer = str | int
Answer = dict[str, Any]  # the body of a response, by the names that the contract gives
Outcome = Answer | RefusedError


def whereabouts(error: BaseException) -> str:
    """Where an error comes from, without its message: messages of libraries repeat what was asked for, ids included."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))


def is_hashed(contract: Contract) -> bool:
    """Whether the platform knows customers by their pseudonyms only."""
    table = contract.tables.items()[contract.main_table]
    return table.columns[table.customer].pii == "hash"


class Question(NamedTuple):
    """Whom a request asks about."""

    customer: Customer
    explain: bool = False


@dataclass(slots=True)
class _Waiting:
    question: Question
    future: asyncio.Future[Outcome]
    since: float


@dataclass(slots=True)
class _Batch:
    """Questions that are answered together. All but `kept` are of one length."""

    questions: Sequence[Question]
    keys: list[Customer]  # the customers as the platform knows them
    found: list[Found | None]
    outcomes: list[Outcome | None]
    kept: list[Answered] = field(default_factory=list)  # for the prediction log


@dataclass(frozen=True)
class Limits:
    """How much is taken on at once."""

    queue: int = 1024
    batch: int = 64
    deadline: float = 2.0  # seconds in the queue


class Scorer:
    """Answers questions about customers.

    Args:
        contract: names the features and says which are stale.
        store: the online store.
        lineup: gives who answers at this moment.
        key: of the keyed hash; needed only where the contract hashes customers.
        keep: takes the answers for the prediction log.
        limits: how much is taken on at once.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        contract: Contract,
        store: OnlineStore,
        *,
        lineup: Callable[[], LineUp],
        key: bytes | None = None,
        keep: Callable[[list[Answered]], None] | None = None,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if key is None and is_hashed(contract):
            raise ValueError("the contract hashes customers: the scorer needs the key.")
        self.contract = contract
        self.store = store
        self.limits = limits
        self._lineup = lineup
        self._key = key if is_hashed(contract) else None
        self._keep = keep
        self._clock = clock
        self._names = contract.feature_names
        self._numeric = [place for place, name in enumerate(self._names) if not contract.is_categorical(name)]
        self._categorical = [place for place, name in enumerate(self._names) if contract.is_categorical(name)]
        self._numbers_of = _picker(self._numeric)
        self._customer_field = contract.serving.customer_field
        age = contract.serving.max_feature_age_days
        self._oldest = None if age is None else age * 86_400
        self._times: dict[float, str] = {}
        self._ids = Ids()
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
        self._runners: set[asyncio.Task[None]] = set()  # nobody else holds them
        self.shadow_failures = 0

    @property
    def waiting(self) -> int:
        """How many questions wait for their turn."""
        return len(self._waiting)

    def submit(self, question: Question) -> asyncio.Future[Outcome]:
        """Put a question in the queue. The future's result is an answer or a refusal; it raises nothing.

        Raises:
            RefusedError: the queue is full.
        """
        if len(self._waiting) >= self.limits.queue:
            raise RefusedError("overloaded", "More is asked than can be answered. Try again in a second.")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(question, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        if self._running < RUNNERS:
            self._running += 1  # counted here and not by the tasks that are there: one may have ended a moment ago
            runner = loop.create_task(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)
        return waiting.future

    async def _run(self) -> None:
        """Take batches from the queue until it is empty."""
        try:
            while self._waiting:
                batch = self._next()
                outcomes = await self.answer([one.question for one in batch])
                for one, outcome in zip(batch, outcomes, strict=True):
                    if not one.future.done():
                        one.future.set_result(outcome)
        finally:
            self._running -= 1

    def _next(self) -> list[_Waiting]:
        """A batch from the queue, without those who have gone and those whose time is up."""
        latest = asyncio.get_running_loop().time() - self.limits.deadline
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self.limits.batch:
            one = self._waiting.popleft()
            if one.future.done():
                continue
            if one.since < latest:
                one.future.set_result(_too_late(self.limits.deadline))
            else:
                batch.append(one)
        return batch

    async def answer(self, questions: Sequence[Question]) -> list[Outcome]:
        """Answers, or refusals in their place, in the order of the questions. Raises nothing."""
        if not questions:
            return []
        try:
            return await self._answer(questions)
        except RefusedError as refusal:
            return [refusal] * len(questions)
        except Exception as error:  # noqa: BLE001 - the last resort: one bad batch must not end the runner
            log.error("a batch of %d failed: %s", len(questions), whereabouts(error))  # noqa: TRY400 - no message: it may hold ids
            words = "The service made a mistake; its operators find it in the log. Try again."
            return [RefusedError("internal_error", words)] * len(questions)

    async def _answer(self, questions: Sequence[Question]) -> list[Outcome]:
        if self._lineup().champion is None:
            words = "There is no champion to answer yet. Try again shortly; /health says what is missing."
            raise RefusedError("not_ready", words)
        keys = [self._known_as(question.customer) for question in questions]
        try:
            found, unreadable = await self._read(keys)
        except StoreUnavailableError:
            words = "The feature store does not answer. Try again shortly; /health says when it is back."
            raise RefusedError("features_unavailable", words) from None
        lineup = self._lineup()  # once, and after the wait: version, threshold and probability belong together
        refusals = [unreadable[place] if place in unreadable else self._refusal(one) for place, one in enumerate(found)]
        batch = _Batch(questions, keys, found, list(refusals))
        places = [place for place, outcome in enumerate(batch.outcomes) if outcome is None]
        if lineup.canary is None:
            self._score(batch, places, lineup.champion, CHAMPION_ARM)
        else:
            canary = [place for place in places if lineup.takes_canary(keys[place])]
            taken = set(canary)
            self._score(batch, canary, lineup.canary, CANARY_ARM)
            self._score(batch, [place for place in places if place not in taken], lineup.champion, CHAMPION_ARM)
        if batch.kept:
            # After the answers have gone out: a shadow makes nobody wait.
            asyncio.get_running_loop().call_soon(self._log, batch.kept, lineup.shadow)
        return [outcome if outcome is not None else _unusable() for outcome in batch.outcomes]

    async def _read(self, keys: list[Customer]) -> tuple[list[Found | None], dict[int, RefusedError]]:
        """What the store holds of customers, and of which places it holds something that Feast does not write."""
        try:
            return await self.store.read(keys), {}
        except FormatError as error:
            log.error("the online store holds what Feast does not write: %s", error)  # noqa: TRY400
        found: list[Found | None] = []
        unreadable = {}
        for place, key in enumerate(keys):  # one by one: the others are not to suffer
            try:
                found += await self.store.read([key])
            except FormatError:
                words = "The features of this customer cannot be read. Tell the service's operators."
                unreadable[place] = RefusedError("unusable_features", words)
                found.append(None)
        return found, unreadable

    def _known_as(self, customer: Customer) -> Customer:
        """A customer as the platform knows them."""
        plain = text.plain(customer) if isinstance(customer, str) else customer
        return plain if self._key is None else masking.pseudonym(self._key, str(plain))

    def _refusal(self, found: Found | None) -> RefusedError | None:
        """Why a customer is not answered for, as far as the features say it."""
        if found is None:
            return RefusedError(
                "unknown_customer",
                "This customer is not known to the feature store. Check the id; a new customer is known after "
                "the next snapshot of features.",
            )
        if self._is_stale(found) and self.contract.serving.when_stale == "refuse":
            return RefusedError(
                "stale_features",
                f"The features of this customer are of {self._iso(found.at)}: older than the "
                f"{self.contract.serving.max_feature_age_days:g} days that the contract allows.",
            )
        return None

    def _is_stale(self, found: Found) -> bool:
        return self._oldest is not None and self._clock() - found.at > self._oldest

    def _score(self, batch: _Batch, places: list[int], served: Served | None, arm: str) -> None:
        """Put the answers of one version into their places."""
        if not places or served is None:
            return
        rows = [one for one in (batch.found[place] for place in places) if one is not None]
        numbers, texts = self._inputs([row.values for row in rows])
        infinite = np.atleast_1d(np.isinf(numbers).any(axis=1)).tolist()
        probabilities = served.model.probabilities(numbers, texts).tolist()
        threshold, version = served.threshold, served.version
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        for row, place, probability, unreal in zip(rows, places, probabilities, infinite, strict=True):
            if unreal:
                words = "A feature of this customer is infinite. Tell the service's operators."
                batch.outcomes[place] = RefusedError("unusable_features", words)
                continue
            if not usable(probability):
                log.warning("version %s of the model gave an answer that is no probability", version)
                batch.outcomes[place] = _unusable()
                continue
            features = dict(zip(self._names, row.values, strict=True))
            decision = HIGH_RISK if probability >= threshold else LOW_RISK
            at, stale = self._iso(row.at), self._is_stale(row)
            batch.outcomes[place] = {
                self._customer_field: batch.questions[place].customer,
                "churn_probability": probability,
                "prediction": decision,
                "features": features,
                "model_version": version,
                "feature_timestamp": at,
                "stale": stale,
                "schema_version": RESPONSE_VERSION,
            }
            if self._keep is not None:
                batch.kept.append(
                    Answered(
                        id=self._ids(),
                        at=now,
                        customer=batch.keys[place],
                        version=version,
                        arm=arm,
                        probability=probability,
                        threshold=threshold,
                        decision=decision,
                        feature_timestamp=at,
                        stale=stale,
                        features=features,
                    )
                )
        asked = [place for place in places if batch.questions[place].explain]
        if asked:
            self._explain(batch, asked, served.model)

    def _explain(self, batch: _Batch, places: list[int], model: CompiledModel) -> None:
        """Add to answers what moved them."""
        from churn_platform.ml.reasons import reasons

        places = [place for place in places if isinstance(batch.outcomes[place], dict)]
        numbers, texts = self._inputs([batch.found[place].values for place in places])  # type: ignore[union-attr]
        for place, row in zip(places, model.contributions(numbers, texts), strict=True):
            answer: Any = batch.outcomes[place]
            named = reasons(self.contract, answer["features"], row, model.usual, most=REASONS, only_raising=False)
            answer["reasons"] = [
                {"feature": one.feature, "contribution": one.contribution, "words": one.words} for one in named
            ]

    def _inputs(self, values: list[list[Any]]) -> tuple[NDArray[np.float64], list[list[str | None]]]:
        """What a model takes, of rows of features. A missing number, None, is NaN."""
        if not self._categorical:
            return np.array(values, dtype="float64"), []
        numbers = np.array([self._numbers_of(row) for row in values], dtype="float64")
        return numbers.reshape(len(values), len(self._numeric)), [
            [row[place] for row in values] for place in self._categorical
        ]

    def _log(self, kept: list[Answered], shadow: Served | None) -> None:
        """Let the shadow score what was answered, and keep it all."""
        if shadow is not None:
            said: Sequence[float | None]
            try:
                numbers, texts = self._inputs([list(one.features.values()) for one in kept])
                said = [p if usable(p) else None for p in shadow.model.probabilities(numbers, texts).tolist()]
            except Exception as error:  # noqa: BLE001 - a shadow that fails is found out, and harms nobody
                if not self.shadow_failures:
                    log.warning("version %s failed in the shadow: %s", shadow.version, whereabouts(error))
                self.shadow_failures += 1
                said = [None] * len(kept)
            for one, probability in zip(kept, said, strict=True):
                one.shadow_version, one.shadow_probability = shadow.version, probability
        if self._keep is not None:
            self._keep(kept)

    def _iso(self, at: float) -> str:
        """A time as text. Nearly all customers share a few of them."""
        known = self._times.get(at)
        if known is None:
            if len(self._times) > 10_000:
                self._times.clear()
            known = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
            self._times[at] = known
        return known


def _picker(places: list[int]) -> Callable[[list[Any]], Any]:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda row: [row[place] for place in places]


def _too_late(deadline: float) -> RefusedError:
    words = f"The request waited longer than {deadline:g} seconds for its turn. Try again shortly."
    return RefusedError("deadline_exceeded", words)


def _unusable() -> RefusedError:
    words = "The model's answer for this customer is not a probability. Tell the service's operators."
    return RefusedError("unusable_answer", words)

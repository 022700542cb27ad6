"""The HTTP app: which path does what, and one shape for everything that goes wrong.

It stands before the app that BentoML makes and answers what is ours; health checks and metrics it passes on. Inside
BentoML's app each call would go through tracing, timeouts and metrics that cost 0.5 to 0.9 ms, ten times the
prediction itself (docs/performance.md). So what those layers give is given here: deadlines, a bounded queue, metrics,
an access log.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from serving import schema
from serving.prediction_log import Ids
from serving.schema import RefusedError
from serving.scorer import Question, whereabouts
from serving.upkeep import Upkeep, drain_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from churn_platform.contract import Contract
    from serving.keys import Keys, RateLimit
    from serving.lineup import LineUp
    from serving.metrics import Metrics
    from serving.scorer import Outcome, Scorer

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("bentoml.churn")

# What BentoML itself answers, to GET.
BENTOML_PATHS = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})
_JSON = b"application/json"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:/+=-]{1,128}")
_CHUNK = 100  # customers of a batch request that are read and scored together, so that others get their turn between


class _DisconnectedError(Exception):
    """Whoever asked has gone: nobody is there to read an answer."""


class Asked(NamedTuple):
    """What a request's headers say, as far as we read them."""

    content_type: bytes
    content_length: bytes
    key: str
    request_id: bytes


class Answered(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]


class Endpoints:
    """What the paths do.

    Args:
        contract: names the fields.
        scorer: answers.
        upkeep: knows who is in the line-up and what is wrong.
        metrics: counts.
        keys: the API keys, or None where none is asked for.
        limit: how often each key may ask, or None.
        access_log: takes a line for each request, or None.
        only_errors: keep the access log to what was not answered.
        drain_seconds: between SIGTERM, when we are not ready any more, and the server's own end.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        scorer: Scorer,
        upkeep: Upkeep,
        metrics: Metrics,
        keys: Keys | None = None,
        limit: RateLimit | None = None,
        access_log: Callable[[dict[str, Any]], None] | None = None,
        only_errors: bool = True,
        drain_seconds: float = 0.0,
    ) -> None:
        self.scorer = scorer
        self.upkeep = upkeep
        self.metrics = metrics
        self.keys = keys
        self.limit = limit
        self.draining = False
        self._access_log = access_log
        self._only_errors = only_errors
        self._drain_seconds = drain_seconds
        self._ids = Ids()
        self._encode = msgspec.json.Encoder().encode
        self._customer_field = contract.serving.customer_field
        self._predict_model = schema.request_model(contract)
        self._explain_model = schema.explain_model(contract)
        self._batch_model = schema.batch_model(contract)
        self._read_customer = schema.customer_reader(contract)
        self._description = json.dumps(schema.openapi(contract, keys is not None)).encode()
        post, get = "POST", "GET"
        self.routes: dict[str, tuple[str, Callable[[Asked, Receive, str], Awaitable[Answered]]]] = {
            "/predict": (post, self.predict),
            "/predict/batch": (post, self.predict_batch),
            "/explain": (post, self.explain),
            "/health": (get, self.health),
            "/model": (get, self.model),
            "/openapi.json": (get, self.openapi),
        }

    def start(self) -> None:
        """Begin. Called in the event loop, of the process's main thread."""
        self.upkeep.start()
        drain_on_sigterm(self._drain_seconds, self._drain)

    def _drain(self) -> None:
        self.draining = True

    async def stop(self) -> None:
        """End."""
        await self.upkeep.stop()

    # -- the paths

    async def predict(self, asked: Asked, receive: Receive, owner: str) -> Answered:
        """POST /predict."""
        self._take(owner)
        request = schema.read_request(self._predict_model, await _body(asked, receive, schema.LARGEST_BODY))
        return self._one(await self.scorer.submit(Question(request.customer, request.explain)))

    async def explain(self, asked: Asked, receive: Receive, owner: str) -> Answered:
        """POST /explain."""
        self._take(owner)
        request = schema.read_request(self._explain_model, await _body(asked, receive, schema.LARGEST_BODY))
        return self._one(await self.scorer.submit(Question(request.customer, explain=True)))

    def _one(self, outcome: Outcome) -> Answered:
        if isinstance(outcome, RefusedError):
            raise outcome
        self.metrics.answered(outcome["prediction"], outcome["model_version"])
        return Answered(200, self._encode(outcome), [])

    async def predict_batch(self, asked: Asked, receive: Receive, owner: str) -> Answered:
        """POST /predict/batch: each customer is answered or refused by itself."""
        request = schema.read_request(self._batch_model, await _body(asked, receive, schema.LARGEST_BATCH_BODY))
        self._take(owner, len(request.customers))
        if self.scorer.waiting + len(request.customers) > self.scorer.limits.queue + schema.LARGEST_BATCH:
            raise RefusedError("overloaded", "More is asked than can be answered. Try again in a second.")
        results: list[Any] = []
        for start in range(0, len(request.customers), _CHUNK):
            results += await self._chunk(request.customers[start : start + _CHUNK])
        refused = sum(1 for result in results if "error" in result)
        body = {
            "results": results,
            "answered": len(results) - refused,
            "refused": refused,
            "schema_version": schema.RESPONSE_VERSION,
        }
        return Answered(200, self._encode(body), [])

    async def _chunk(self, items: list[Any]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = [{}] * len(items)
        questions: list[Question] = []
        places: list[int] = []
        for place, item in enumerate(items):
            try:
                questions.append(Question(self._read_customer(item)))
                places.append(place)
            except RefusedError as refusal:
                results[place] = refusal.body
        for place, outcome in zip(places, await self.scorer.answer(questions), strict=True):
            if isinstance(outcome, RefusedError):
                if outcome.code in ("not_ready", "features_unavailable", "internal_error"):
                    raise outcome  # it is of the service, and not of this customer
                results[place] = outcome.body
            else:
                self.metrics.answered(outcome["prediction"], outcome["model_version"])
                results[place] = outcome
        return results

    async def health(self, _asked: Asked, _receive: Receive, _owner: str) -> Answered:
        """GET /health: 200 when predictions can be had, else 503 and what is missing."""
        champion, problems = self._lineup.champion, self.problems
        body = schema.Health(
            status="unavailable" if problems else "healthy",
            model_version=champion.version if champion else None,
            feature_store="available" if self.upkeep.store_answers else "unavailable",
            problems=problems,
            warnings=self.upkeep.warnings
            + ([self.keys.problem] if self.keys is not None and self.keys.problem else []),
        )
        return Answered(503 if problems else 200, body.model_dump_json().encode(), [])

    async def model(self, _asked: Asked, _receive: Receive, _owner: str) -> Answered:
        """GET /model: who answers."""
        lineup = self._lineup
        champion = lineup.champion
        if champion is None:
            words = "There is no champion yet. Try again shortly; /health says what is missing."
            raise RefusedError("not_ready", words)
        tags = champion.tags
        body = schema.ModelInformation.model_validate(
            {
                "version": champion.version,
                "run_id": champion.run_id,
                "trained_at": tags.get("trained_at"),
                "window": tags.get("window"),
                "tested_from": tags.get("test_from"),
                "tested_to": tags.get("test_to"),
                "metrics": {name: value for name, value in champion.metrics.items() if value == value},  # noqa: PLR0124 - NaN
                "threshold": champion.threshold,
                "features": list(champion.model.features),
                "from_cache": self.upkeep.from_cache,
                "canary_version": lineup.canary.version if lineup.canary else None,
                "canary_share": lineup.share,
                "shadow_version": lineup.shadow.version if lineup.shadow else None,
            }
        )
        return Answered(200, body.model_dump_json().encode(), [])

    async def openapi(self, _asked: Asked, _receive: Receive, _owner: str) -> Answered:
        """GET /openapi.json."""
        return Answered(200, self._description, [])

    @property
    def problems(self) -> list[str]:
        """What keeps us from answering, in words that anyone may read; empty when we are ready."""
        return [*self.upkeep.problems, *(["The service is being stopped."] if self.draining else [])]

    @property
    def _lineup(self) -> LineUp:
        return self.upkeep.lineup

    # -- what is around them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        began = time.perf_counter()
        path, method = scope["path"], scope["method"]
        asked = _asked(scope["headers"])
        request_id = asked.request_id or self._ids().encode()
        owner = ""
        try:
            work = self._route(path, method)
            if path in ("/predict", "/explain", "/predict/batch", "/model"):
                owner = self._owner(asked)
            answered = await work(asked, receive, owner)
            code = ""
        except RefusedError as refusal:
            code = refusal.code
            answered = _refused(refusal)
        except _DisconnectedError:
            return
        except Exception as error:  # noqa: BLE001 - the last resort
            # Not the error itself: the server would log its message, and messages hold ids.
            log.error("%s failed: %s", path if path in self.routes else "a request", whereabouts(error))  # noqa: TRY400
            words = "The service made a mistake; its operators find it in the log. Try again."
            code = "internal_error"
            answered = _refused(RefusedError(code, words))
        seconds = time.perf_counter() - began
        known = path if path in self.routes else "other"
        self.metrics.request(known, answered.status, code, seconds)
        if self._access_log is not None and (answered.status >= 400 or not self._only_errors):
            self._access_log(
                {
                    "request_id": request_id.decode(),
                    "method": method[:20],
                    "path": known,
                    "status": answered.status,
                    "code": code,
                    "milliseconds": round(seconds * 1000, 3),
                    "key": owner,
                }
            )
        await self._send(send, answered, request_id)

    def _route(self, path: str, method: str) -> Callable[[Asked, Receive, str], Awaitable[Answered]]:
        route = self.routes.get(path)
        if route is None:
            if path in BENTOML_PATHS:
                raise _not_allowed(method, "GET, HEAD")
            raise RefusedError("not_found", "There is no such path. See /openapi.json for those that there are.")
        if route[0] != method:
            raise _not_allowed(method, route[0])
        return route[1]

    def _owner(self, asked: Asked) -> str:
        """Whose API key it is; "" where none is asked for."""
        if self.keys is None:
            return ""
        owner = self.keys.owner(asked.key) if asked.key else None
        if owner is None:
            words = "Send a valid API key in the header X-API-Key, or as Authorization: Bearer."
            raise RefusedError("unauthorized", words)
        return owner

    def _take(self, owner: str, cost: int = 1) -> None:
        """Count a request against its key's limit."""
        if self.limit is None:
            return
        wait = self.limit.wait(owner, cost)
        if wait:
            raise _TooOftenError(wait)

    async def _send(self, send: Send, answered: Answered, request_id: bytes) -> None:
        headers = [
            (b"content-type", _JSON),
            (b"content-length", b"%d" % len(answered.body)),
            (b"x-request-id", request_id),
            *answered.headers,
        ]
        if self.draining:  # the client opens its next connection elsewhere
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answered.status, "headers": headers})
        await send({"type": "http.response.body", "body": answered.body})


def _refused(refusal: RefusedError) -> Answered:
    """What a refusal looks like to the caller."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(refusal, _NotAllowedError):
        headers.append((b"allow", refusal.allowed.encode()))
    elif isinstance(refusal, _TooOftenError):
        headers.append((b"retry-after", b"%d" % math.ceil(refusal.seconds)))
    elif refusal.status == 503:
        headers.append((b"retry-after", b"%d" % schema.RETRY_AFTER.get(refusal.code, schema.USUAL_RETRY)))
    elif refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Answered(refusal.status, msgspec.json.encode(refusal.body), headers)


class _NotAllowedError(RefusedError):
    def __init__(self, words: str, allowed: str) -> None:
        super().__init__("method_not_allowed", words)
        self.allowed = allowed


class _TooOftenError(RefusedError):
    def __init__(self, seconds: float) -> None:
        super().__init__("too_many_requests", f"This API key asks too often. Try again in {seconds:.1f} seconds.")
        self.seconds = seconds


def _not_allowed(method: str, allowed: str) -> RefusedError:
    return _NotAllowedError(f"This path does not take {method[:20]}. It takes: {allowed}.", allowed)


def _asked(headers: list[tuple[bytes, bytes]]) -> Asked:
    """What the headers say. Their names are in lower case, as ASGI has it."""
    kind = length = key = bearer = request_id = b""
    for name, value in headers:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            length = value
        elif name == b"x-api-key":
            key = value
        elif name == b"authorization":
            bearer = value
        elif name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = value
    if not key and bearer[:7].lower() == b"bearer ":
        key = bearer[7:].strip()
    return Asked(kind, length, key.decode("latin-1"), request_id)


async def _body(asked: Asked, receive: Receive, largest: int) -> bytes:
    """The request's body, read no further than the limit."""
    if asked.content_type != _JSON and asked.content_type.split(b";")[0].strip().lower() != _JSON:
        words = "The body must be JSON and say so: send the header Content-Type: application/json."
        raise RefusedError("unsupported_media_type", words)
    if asked.content_length.isdigit() and int(asked.content_length[:20]) > largest:
        raise _too_large(largest)
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        body += message.get("body", b"")
        if len(body) > largest:
            raise _too_large(largest)
        if not message.get("more_body", False):
            return body


def _too_large(largest: int) -> RefusedError:
    return RefusedError("body_too_large", f"The body may have at most {largest:,} bytes.")


class Front:
    """Stands before BentoML's app.

    Args:
        app: what `Service.to_asgi` made.
        endpoints: gives what answers; called once BentoML has made the service.
    """

    def __init__(self, app: App, endpoints: Callable[[], Endpoints]) -> None:
        self.app = app
        self._make = endpoints
        self._endpoints: Endpoints | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif self._endpoints is None or scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] in BENTOML_PATHS and scope["method"] in ("GET", "HEAD"):
            self._endpoints.metrics.flush()
            await self.app(scope, receive, send)
        else:
            await self._endpoints(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin after BentoML has begun, and end before it ends."""

        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._endpoints = self._make()
                self._endpoints.start()
            await send(message)

        async def hear() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._endpoints is not None:
                await self._endpoints.stop()
            return message

        await self.app(scope, hear, tell)

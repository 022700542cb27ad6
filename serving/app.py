"""The HTTP app: which path does what, and one shape for everything that goes wrong.

BentoML mounts it at `/` behind its own `/livez`, `/healthz`, `/readyz` and `/metrics`. An app of our own, because
BentoML's APIs wrap the body in a parameter's name, take `true` for text, ignore extra fields and answer 400.
"""

from __future__ import annotations

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving import schema
from serving.predictor import log, whereabouts
from serving.schema import LARGEST_BODY, STATUSES, RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

    from churn_platform.contract import Contract
    from churn_platform.resources.tracking import RegisteredModel
    from serving.predictor import Predictor

    Endpoint = Callable[[Request], Awaitable[Response]]

DEADLINE = 10.0  # seconds until a prediction is given up; before BentoML's own timeout, whose answer is not ours
THREADS = 4  # predictions at work at once in one process; more would only contend for its core

# BentoML answers GET on these itself; whatever else arrives there comes to us.
BENTOML_PATHS = ("/livez", "/healthz", "/readyz", "/metrics", "/schema.json")


class Metrics:
    """The service's own figures beside BentoML's, in /metrics.

    `prometheus_client` is imported here and not above: it decides when it is imported whether several processes are
    summed, by a variable that BentoML sets for its workers. (`bentoml.metrics` is deprecated in favour of this.)
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client as prometheus

        registry = registry or prometheus.REGISTRY
        self.predictions = prometheus.Counter(
            "churn_predictions_total", "Predictions answered", ["prediction", "model_version"], registry=registry
        )
        self.errors = prometheus.Counter(
            "churn_prediction_errors_total", "Requests to /predict that were refused", ["code"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "churn_prediction_seconds",
            "Seconds from a request to /predict to its answer",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=registry,
        )
        # "mostrecent": a worker that died does not keep the old champion's gauge at 1.
        self.model = prometheus.Gauge(
            "churn_model_info",
            "1 for the version that answers, 0 for those before it",
            ["model_version"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        # Series that begin at zero let rate() see the first event. The router's refusals are no prediction's.
        for code in STATUSES.keys() - {"not_found", "method_not_allowed"}:
            self.errors.labels(code)

    def champion_changed(self, new: RegisteredModel, old: RegisteredModel | None) -> None:
        """Show which version answers."""
        for prediction in (schema.HIGH_RISK, schema.LOW_RISK):
            self.predictions.labels(prediction, new.version)
        if old is not None:
            self.model.labels(old.version).set(0)
        self.model.labels(new.version).set(1)


def build(contract: Contract, predictor: Predictor, metrics: Metrics, deadline: float = DEADLINE) -> Starlette:
    """The app. Its answers are described by `/openapi.json`."""
    endpoints = Endpoints(contract, predictor, metrics, deadline)
    app = Starlette(
        routes=[
            Route("/predict", _safe(endpoints.predict), methods=["POST"]),
            Route("/health", _safe(endpoints.health), methods=["GET"]),
            Route("/model", _safe(endpoints.model), methods=["GET"]),
            Route("/openapi.json", _safe(endpoints.openapi), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _not_routed},
    )
    app.router.redirect_slashes = False  # a redirected POST loses its body with many clients
    return app


class Endpoints:
    """What the paths do."""

    def __init__(self, contract: Contract, predictor: Predictor, metrics: Metrics, deadline: float) -> None:
        self.predictor = predictor
        self.metrics = metrics
        self.deadline = deadline
        self.request_model = schema.request_model(contract)
        self.response_model = schema.response_model(contract)
        self.description = schema.openapi(contract, self.request_model, self.response_model)
        # A pool of our own: requests that hang on the online store must not take the threads of the health checks.
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="predict")

    async def predict(self, request: Request) -> Response:
        """POST /predict."""
        started = time.perf_counter()
        try:
            body, values = await self._answer(request)
        except RefusedError as refusal:
            self.metrics.errors.labels(refusal.code).inc()
            raise
        except ClientDisconnect:
            raise
        except Exception:
            self.metrics.errors.labels("internal_error").inc()
            raise
        finally:
            self.metrics.seconds.observe(time.perf_counter() - started)
        self.metrics.predictions.labels(values["prediction"], values["model_version"]).inc()
        return Response(body, media_type="application/json")

    async def _answer(self, request: Request) -> tuple[bytes, dict[str, Any]]:
        """The response's body, and the values that it was made from."""
        customer = schema.read_request(self.request_model, await _body(request))
        answer = asyncio.get_running_loop().run_in_executor(self.threads, self._work, customer)
        try:
            return await asyncio.wait_for(answer, self.deadline)
        except TimeoutError:
            words = f"There was no answer within {self.deadline:g} seconds. Try again shortly."
            raise RefusedError("deadline_exceeded", words) from None

    def _work(self, customer: str | int) -> tuple[bytes, dict[str, Any]]:
        values = self.predictor.predict(customer)
        return schema.write_response(self.response_model, values), values

    async def health(self, _request: Request) -> Response:
        """GET /health: 200 when predictions can be had, else 503 and what is missing."""
        champion, problems = self.predictor.champion, self.predictor.problems
        body = schema.Health(
            status="unavailable" if problems else "healthy",
            model_version=champion.version if champion else None,
            feature_store="available" if self.predictor.store_answers else "unavailable",
            problems=problems,
        )
        return JSONResponse(body.model_dump(), status_code=503 if problems else 200)

    async def model(self, _request: Request) -> Response:
        """GET /model: the champion that answers."""
        champion = self.predictor.champion
        if champion is None:
            words = "There is no champion yet. Try again shortly; /health says what is missing."
            raise RefusedError("not_ready", words)
        body = schema.ModelInformation.model_validate(
            {
                "version": champion.version,
                "run_id": champion.run_id,
                "trained_at": champion.tags.get("trained_at"),
                "threshold": champion.threshold,
                "features": champion.features,
            }
        )
        return JSONResponse(body.model_dump(mode="json"))

    async def openapi(self, _request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(self.description)


async def _body(request: Request) -> bytes:
    """The request's body, read no further than the limit."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        words = "The body must be JSON and say so: send the header Content-Type: application/json."
        raise RefusedError("unsupported_media_type", words)
    too_large = RefusedError("body_too_large", f"The body may have at most {LARGEST_BODY:,} bytes.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > LARGEST_BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise too_large
    return bytes(body)


def _refused(refusal: RefusedError, headers: dict[str, str] | None = None) -> Response:
    body = schema.ErrorResponse(error=schema.ErrorDetail(code=refusal.code, message=refusal.message))
    if refusal.status == 503:
        headers = {**(headers or {}), "Retry-After": "5"}
    return JSONResponse(body.model_dump(), status_code=refusal.status, headers=headers)


def _safe(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose every error is answered in our shape.

    Not Starlette's handler for Exception, which raises the error again after answering: the server would log its
    message, and messages hold ids.
    """

    @functools.wraps(endpoint)
    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RefusedError as refusal:
            return _refused(refusal)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception as error:  # noqa: BLE001 - the last resort
            log.error("/%s failed: %s", endpoint.__name__, whereabouts(error))
            words = "The service made a mistake; its operators find it in the log. Try again."
            return _refused(RefusedError("internal_error", words))

    return answered


async def _not_routed(request: Request, error: Any) -> Response:
    """No such path, or not this method: `error` is Starlette's HTTPException with 404 or 405."""
    bentoml_path = request.url.path in BENTOML_PATHS
    if error.status_code == 405 or bentoml_path:
        allowed = "GET, HEAD" if bentoml_path else error.headers["Allow"]
        words = f"This path does not take {request.method[:20]}. It takes: {allowed}."
        return _refused(RefusedError("method_not_allowed", words), {"Allow": allowed})
    words = "There is no such path. See /openapi.json for those that there are."
    return _refused(RefusedError("not_found", words))

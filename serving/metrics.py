"""The service's own figures, beside BentoML's in /metrics.

`prometheus_client` is imported when a worker begins and not before: it decides then whether several processes are
summed, by a variable that BentoML sets for its workers. (`bentoml.metrics` is deprecated in favour of this.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.schema import HIGH_RISK, LOW_RISK, STATUSES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram

    from serving.lineup import Served


class Metrics:
    """Counters, a histogram and gauges, made in a registry; default prometheus_client's own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client as prometheus

        registry = registry or prometheus.REGISTRY
        self.predictions = prometheus.Counter(
            "churn_predictions_total", "Customers answered for", ["prediction", "model_version"], registry=registry
        )
        self.errors = prometheus.Counter(
            "churn_prediction_errors_total", "Requests that were refused, by reason", ["code"], registry=registry
        )
        self.requests = prometheus.Counter(
            "churn_requests_total", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "churn_prediction_seconds",
            "Seconds from a request to /predict to its answer",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
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
        self.not_logged = prometheus.Counter(
            "churn_predictions_not_logged_total", "Answers that the prediction log had no room for", registry=registry
        )
        self.waiting = prometheus.Gauge(
            "churn_waiting_requests",
            "Requests that wait for their turn, in all workers",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Series that begin at zero let rate() see the first event. The router's refusals are no prediction's.
        for code in STATUSES.keys() - {"not_found", "method_not_allowed"}:
            self.errors.labels(code)
        self._answered: dict[tuple[str, str], Counter] = {}
        self._requests: dict[tuple[str, int], Counter] = {}
        self._seconds: Histogram = self.seconds

    def champion_changed(self, new: Served, old: Served | None) -> None:
        """Show which version answers."""
        for prediction in (HIGH_RISK, LOW_RISK):
            self.predictions.labels(prediction, new.version)
        if old is not None:
            self.model.labels(old.version).set(0)
        self.model.labels(new.version).set(1)

    def answered(self, prediction: str, version: str) -> None:
        """Count an answer."""
        counter = self._answered.get((prediction, version))
        if counter is None:  # labels() looks a series up under a lock: once for each is enough
            counter = self._answered[prediction, version] = self.predictions.labels(prediction, version)
        counter.inc()

    def request(self, path: str, status: int, code: str, seconds: float) -> None:
        """Count a request."""
        counter = self._requests.get((path, status))
        if counter is None:
            counter = self._requests[path, status] = self.requests.labels(path, str(status))
        counter.inc()
        if code and code not in ("not_found", "method_not_allowed"):
            self.errors.labels(code).inc()
        if path == "/predict":
            self._seconds.observe(seconds)

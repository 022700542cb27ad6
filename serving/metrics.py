"""The service's own figures, beside BentoML's in /metrics.

`prometheus_client` is imported when a worker begins and not before: it decides then whether several processes are
summed, by a variable that BentoML sets for its workers. (`bentoml.metrics` is deprecated in favour of this.)
"""

from __future__ import annotations

from collections import Counter as Counted
from typing import TYPE_CHECKING

from serving.schema import HIGH_RISK, LOW_RISK, STATUSES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

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
        self._answered: Counted[tuple[str, str]] = Counted()
        self._requests: Counted[tuple[str, int, str]] = Counted()

    def champion_changed(self, new: Served, old: Served | None) -> None:
        """Show which version answers."""
        for prediction in (HIGH_RISK, LOW_RISK):
            self.predictions.labels(prediction, new.version)
        if old is not None:
            self.model.labels(old.version).set(0)
        self.model.labels(new.version).set(1)

    def answered(self, prediction: str, version: str) -> None:
        """Count an answer; `flush` shows it."""
        self._answered[prediction, version] += 1

    def request(self, path: str, status: int, code: str, seconds: float) -> None:
        """Count a request; `flush` shows it."""
        self._requests[path, status, code] += 1
        if path == "/predict":
            self.seconds.observe(seconds)

    def flush(self) -> None:
        """Show what was counted.

        With several workers each change of a counter is a write into a file that they share, under a lock. Changing
        all of them a few times a second costs a tenth of doing so with each request.
        """
        answered, self._answered = self._answered, Counted()
        requests, self._requests = self._requests, Counted()
        for (prediction, version), number in answered.items():
            self.predictions.labels(prediction, version).inc(number)
        for (path, status, code), number in requests.items():
            self.requests.labels(path, str(status)).inc(number)
            if code and code not in ("not_found", "method_not_allowed"):
                self.errors.labels(code).inc(number)

"""Metrics for Prometheus: counters and a histogram kept here, gauges read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
NOT_INSPECTED = "none"
_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
    """Counters and a histogram of what the station did since it started."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._inspections = Counter(
            "pinspect_inspections",
            "Inspected captures, by judgement (none: could not be inspected) and model version.",
            ("judgement", "version"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pinspect_inspection_seconds",
            "Time from the last byte of an upload to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._refused = Counter(
            "pinspect_refused_uploads", "Refused uploads, by reason.", ("reason",), registry=self._registry
        )
        self._requests = Counter(
            "pinspect_http_requests",
            "HTTP requests, by method, route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )

    def inspected(self, judgement: str | None, version: str | None) -> None:
        """Count an inspected capture.

        Args:
            judgement: Its judgement; None if it could not be inspected.
            version: Model version that answered.
        """
        self._inspections.labels(judgement or NOT_INSPECTED, version or NOT_INSPECTED).inc()

    def took(self, seconds: float) -> None:
        """Record the duration (s) of an answered upload."""
        self._seconds.observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a refused upload. `reason` is one word, see `problems.Problem`."""
        self._refused.labels(reason).inc()

    def requested(self, method: str, route: str, status: int) -> None:
        """Count an answered HTTP request."""
        self._requests.labels(method, route, str(status)).inc()

    def exposition(self, health: Mapping, counts: Mapping[str, int]) -> bytes:
        """Return all metrics in Prometheus' text format.

        Args:
            health: `condition.Health` as a dict.
            counts: Rows of the results table by kind (`ResultsTable.counts`).
        """
        state = CollectorRegistry()
        state.register(_State(health, counts))
        return generate_latest(self._registry) + generate_latest(state)


class CountRequests:
    """ASGI middleware that counts requests by method, route and status."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry):
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request and count its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # if the application sends nothing

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            # An invented method must not create a time series.
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            self._telemetry.requested(method, route, status)


class _State(Collector):
    """Gauges: the model, its queue, the results table, receivers of results, drift."""

    def __init__(self, health: Mapping, counts: Mapping[str, int]):
        self._health = health
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        health = self._health
        model = GaugeMetricFamily("pinspect_model_info", "Model version that answers.", labels=("version", "alias"))
        if health["version"]:
            model.add_metric((health["version"], health["alias"] or ""), 1)
        yield model
        yield _gauge("pinspect_model_up", "1 if a model answers.", health["version"] is not None)
        yield _gauge(
            "pinspect_model_stale", "1 if the newest champion cannot be loaded.", health["last_error"] is not None
        )
        yield _gauge("pinspect_queue_captures", "Captures that wait for the model.", health["queue"])
        yield CounterMetricFamily(
            "pinspect_batches", "Forward passes since the model process started.", value=health["batches"] or 0
        )
        yield CounterMetricFamily(
            "pinspect_batched_captures", "Captures in those forward passes.", value=health["captures"] or 0
        )
        yield _gauge(
            "pinspect_corrections_waiting",
            "Corrected captures that the next retraining will use.",
            health["waiting_corrections"],
        )
        yield _gauge("pinspect_results_writable", "1 if results can be written.", health["results_error"] is None)
        results = GaugeMetricFamily(
            "pinspect_results",
            "Rows of the results table; judged, escapes and overkill as judged by people.",
            labels=("kind",),
        )
        for kind, count in self._counts.items():
            results.add_metric((kind,), count)
        yield results
        yield from self._deliveries()
        yield from self._drift()

    def _deliveries(self) -> Iterator[Metric]:
        behind = GaugeMetricFamily(
            "pinspect_receiver_behind", "Stored results that the receiver has not confirmed.", labels=("receiver",)
        )
        up = GaugeMetricFamily(
            "pinspect_receiver_up", "1 if the latest delivery to the receiver did not fail.", labels=("receiver",)
        )
        for receiver in self._health["receivers"]:
            behind.add_metric((receiver["name"],), receiver["behind"])
            up.add_metric((receiver["name"],), receiver["error"] is None)
        yield behind
        yield up

    def _drift(self) -> Iterator[Metric]:
        distance = GaugeMetricFamily(
            "pinspect_drift_distance",
            "Kolmogorov-Smirnov distance between the latest captures and the training captures.",
            labels=("quantity",),
        )
        changed = GaugeMetricFamily("pinspect_drift_changed", "1 if the quantity has changed.", labels=("quantity",))
        for change in (self._health["drift"] or {}).get("quantities", ()):
            if change["distance"] is not None:
                distance.add_metric((change["quantity"],), change["distance"])
            changed.add_metric((change["quantity"],), change["changed"])
        yield distance
        yield changed


def _gauge(name: str, documentation: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=0 if value is None else float(value))

"""What the station tells Prometheus.

Counters and the histogram are counted by every web worker; with several of them `prometheus_client` gathers them by
files in PROMETHEUS_MULTIPROC_DIR. What describes the present moment is asked for when Prometheus asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
NOT_INSPECTED = "none"
_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
    """The metrics of one web worker."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._inspections = Counter(
            "pinspect_inspections",
            "Captures answered, by judgement (none: could not be inspected) and model version.",
            ("judgement", "version"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pinspect_inspection_seconds",
            "From the last byte of an upload to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._refused = Counter(
            "pinspect_refused_uploads", "Uploads turned away, by reason.", ("reason",), registry=self._registry
        )
        self._requests = Counter(
            "pinspect_http_requests",
            "HTTP requests, by method, route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )

    def inspected(self, judgement: str | None, version: str | None) -> None:
        """A capture was answered."""
        self._inspections.labels(judgement or NOT_INSPECTED, version or NOT_INSPECTED).inc()

    def took(self, seconds: float) -> None:
        """A request for inspection was answered."""
        self._seconds.observe(seconds)

    def refused(self, reason: str) -> None:
        """An upload was turned away."""
        self._refused.labels(reason).inc()

    def requested(self, method: str, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(method, route, str(status)).inc()

    def exposition(self, health: Mapping, counts: Mapping[str, int]) -> bytes:
        """Everything, in Prometheus' text format. health: see `condition.Condition.told`. counts: of the results."""
        gathered = self._registry
        if MULTIPROCESS_FOLDER in os.environ:
            gathered = CollectorRegistry()
            MultiProcessCollector(gathered)
        moment = CollectorRegistry()
        moment.register(_Moment(health, counts))
        return generate_latest(gathered) + generate_latest(moment)


class CountRequests:
    """The middleware that counts requests by route and status."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry):
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # when nothing was sent at all

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            # A method that nobody knows must not make a time series of its own.
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            self._telemetry.requested(method, route, status)


class _Moment(Collector):
    """What is so now: the model, its queue, the results table, the line."""

    def __init__(self, health: Mapping, counts: Mapping[str, int]):
        self._health = health
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        health = self._health
        model = GaugeMetricFamily("pinspect_model_info", "The version that answers.", labels=("version", "alias"))
        if health["version"]:
            model.add_metric((health["version"], health["alias"] or ""), 1)
        yield model
        yield _gauge("pinspect_model_up", "1 when a model answers.", health["version"] is not None)
        yield _gauge(
            "pinspect_model_stale", "1 when a new champion could not be loaded.", health["last_error"] is not None
        )
        yield _gauge("pinspect_queue_captures", "Captures that wait for the model.", health["queue"])
        yield CounterMetricFamily(
            "pinspect_batches", "Forward passes since the model process began.", value=health["batches"] or 0
        )
        yield CounterMetricFamily(
            "pinspect_batched_captures", "Captures that went through them.", value=health["captures"] or 0
        )
        yield _gauge(
            "pinspect_corrections_waiting",
            "Corrected captures that the next retraining will learn from.",
            health["waiting_corrections"],
        )
        yield _gauge("pinspect_results_writable", "1 when results can be kept.", health["results_error"] is None)
        results = GaugeMetricFamily(
            "pinspect_results",
            "Rows of the results table; judged, escapes and overkill by people.",
            labels=("kind",),
        )
        for kind, count in self._counts.items():
            results.add_metric((kind,), count)
        yield results
        yield from self._drift()

    def _drift(self) -> Iterator[Metric]:
        distance = GaugeMetricFamily(
            "pinspect_drift_distance",
            "Kolmogorov-Smirnov distance of the latest captures from those that the model learnt from.",
            labels=("quantity",),
        )
        changed = GaugeMetricFamily("pinspect_drift_changed", "1 when a quantity has changed.", labels=("quantity",))
        for found in (self._health["drift"] or {}).get("quantities", ()):
            if found["distance"] is not None:
                distance.add_metric((found["quantity"],), found["distance"])
            changed.add_metric((found["quantity"],), found["changed"])
        yield distance
        yield changed


def _gauge(name: str, told: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, value=0 if value is None else float(value))

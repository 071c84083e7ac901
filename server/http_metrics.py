"""Metrics of HTTP itself: what was asked, with which status it was answered, how long it took, how large it was.

Label values are bounded: routes are templates (`unknown` for paths that none fits), methods those of HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

UNKNOWN = "unknown"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)


class HttpMetrics:
    """Counts answers. A series is looked up once for each route, method and status, and kept."""

    def __init__(self, model_name: str, registry: CollectorRegistry) -> None:
        self._model_name = model_name
        self._requests = Counter(
            "deepseek_serve_http_requests",
            "Answers by route, method and status; 499 where the client left before one.",
            ["model_name", "route", "method", "status"],
            registry=registry,
        )

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            labels = ["model_name", "route"]
            return Histogram(f"deepseek_serve_http_{name}", text, labels, buckets=buckets, registry=registry)

        self._histograms = (
            histogram("request_duration_seconds", "From a request's headers to its answer's last byte.", _SECONDS),
            histogram("request_body_bytes", "Sizes of requests' bodies.", _BYTES),
            histogram("response_body_bytes", "Sizes of answers' bodies.", _BYTES),
        )
        in_flight = "Requests that are being answered, streams included."
        self.in_flight: Gauge = Gauge(
            "deepseek_serve_http_requests_in_flight", in_flight, ["model_name"], registry=registry
        ).labels(model_name)
        self._series: dict[tuple[str, str, int], tuple[Callable[[], None], tuple[Histogram, ...]]] = {}
        self.answered(UNKNOWN, "GET", 404, None)  # from 0 on: rates leave out the first value of a series

    def answered(self, route: str, method: str, status: int, sizes: tuple[float, int, int] | None) -> None:
        """Count an answer; `sizes` are its seconds, and the bytes of its request's body and of its own."""
        key = (route, method, status)
        if (series := self._series.get(key)) is None:
            labels = self._model_name, route, method if method in _METHODS else UNKNOWN, str(status)
            counter = self._requests.labels(*labels)
            histograms = tuple(histogram.labels(self._model_name, route) for histogram in self._histograms)
            series = counter.inc, histograms
            if method in _METHODS or method == UNKNOWN:  # a client may make up any number of others
                self._series[key] = series
        if sizes is not None:
            count, histograms = series
            count()
            for histogram, value in zip(histograms, sizes, strict=True):
                histogram.observe(value)

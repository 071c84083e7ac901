"""Metrics of HTTP itself: what was asked, with which status it was answered, how long it took, how large it was.

Label values are bounded: routes are templates (`unknown` for paths that none fits), methods those of HTTP. Counts are
plain numbers, kept by the one thread of the event loop: a microsecond a request, where locked ones cost ten.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from server.observe.families import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from server.observe.families import Families

UNKNOWN = "unknown"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
_HISTOGRAMS = (
    ("request_duration_seconds", "From a request's headers to its answer's last byte.", _SECONDS),
    ("request_body_bytes", "Sizes of requests' bodies.", _BYTES),
    ("response_body_bytes", "Sizes of answers' bodies.", _BYTES),
)


class HttpMetrics:
    """Counts answers; a collector of prometheus_client.

    Attributes:
        num_in_flight: requests that are being answered.
    """

    def __init__(self, make: Families) -> None:
        self._make, self._model_name = make, make.model_name
        self.num_in_flight = 0
        self._answers: Counter[tuple[str, str, int]] = Counter({(UNKNOWN, "GET", 404): 0})  # rates need a first value
        self._routes: dict[str, tuple[_Histogram, ...]] = {}
        make.registry.register(self)

    def answered(self, route: str, method: str, status: int, sizes: tuple[float, int, int]) -> None:
        """Count an answer; `sizes` are its seconds, and the bytes of its request's body and of its own."""
        self._answers[route, method if method in _METHODS else UNKNOWN, status] += 1
        if (histograms := self._routes.get(route)) is None:
            histograms = self._routes[route] = tuple(_Histogram(bounds) for _, _, bounds in _HISTOGRAMS)
        for histogram, size in zip(histograms, sizes, strict=True):
            histogram.counts[bisect_left(histogram.bounds, size)] += 1
            histogram.sum += size

    def collect(self) -> Iterator[Metric]:
        """Yield metrics; prometheus_client calls this at every scrape."""
        text = "Answers by route, method and status; 499 where the client left before one."
        counter = CounterMetricFamily(_name("requests"), text, labels=["model_name", "route", "method", "status"])
        for (route, method, status), count in self._answers.items():
            counter.add_metric([self._model_name, route, method, str(status)], count)
        yield counter
        text = "Requests that are being answered, streams included."
        yield self._make.gauge_now("http_requests_in_flight", text, self.num_in_flight)
        for i, (name, text, _) in enumerate(_HISTOGRAMS):
            family = HistogramMetricFamily(_name(name), text, labels=["model_name", "route"])
            for route, histograms in self._routes.items():
                family.add_metric([self._model_name, route], histograms[i].cumulated(), histograms[i].sum)
            yield family


class _Histogram:
    """Values counted in buckets: `counts[i]` of those up to `bounds[i]`, and one more for those above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def cumulated(self) -> list[tuple[str, float]]:
        """Return each bound with how many values are not above it."""
        total, pairs = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            pairs.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
        return pairs


def _name(name: str) -> str:
    return f"{PREFIX}http_{name}"

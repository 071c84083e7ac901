"""Makes metrics of one registry: each has our prefix, and the label model_name with the name of one model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

PREFIX = "deepseek_serve_"


class Families:
    """The metrics of one model in one registry. `text` is what /metrics says of them."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self.registry, self.model_name = registry, model_name

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram without further labels."""
        histogram: Histogram = self.histograms(name, text, buckets)()
        return histogram

    def histograms(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Callable[..., Histogram]:
        """The histogram for values of these labels."""
        made = Histogram(PREFIX + name, text, ["model_name", *labels], buckets=buckets, registry=self.registry)
        return partial(made.labels, self.model_name)

    def counter(self, name: str, text: str) -> Counter:
        """A counter without further labels."""
        counter: Counter = self.counters(name, text)()
        return counter

    def counters(self, name: str, text: str, *labels: str, values: Iterable[str] = ()) -> Callable[..., Counter]:
        """The counter for values of these labels. Those for `values` of the only label are there from 0 on."""
        made = Counter(PREFIX + name, text, ["model_name", *labels], registry=self.registry)
        of = partial(made.labels, self.model_name)
        for value in values:
            of(value)
        return of

    def gauges(self, name: str, text: str, *labels: str) -> Callable[..., Gauge]:
        """The gauge for values of these labels."""
        made = Gauge(PREFIX + name, text, ["model_name", *labels], registry=self.registry)
        return partial(made.labels, self.model_name)

    def gauge_now(self, name: str, text: str, value: float) -> Metric:
        """A gauge as it is at this scrape, for a collector to yield."""
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self.model_name], value)
        return family

    def gauges_now(self, name: str, text: str, label: str, values: dict[str, float]) -> Metric:
        """Gauges as they are at this scrape, by the values of a label."""
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name", label])
        for label_value, value in values.items():
            family.add_metric([self.model_name, label_value], value)
        return family

    def counter_now(self, name: str, text: str, value: float) -> Metric:
        """A counter as it is at this scrape, for a collector to yield."""
        family = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self.model_name], value)
        return family

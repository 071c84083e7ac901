"""What /metrics says of the guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from server.engine_client import EngineClient

Checked = Literal["prompt", "output"]
Result = Literal["passed", "flagged", "failed"]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class GuardMetrics:
    """Registered beside the server's own; docs/operations.md explains each. Their `model_name` is the guard's."""

    def __init__(self, name: str, client: EngineClient, registry: CollectorRegistry) -> None:
        self._name, self._client = name, client
        text = "Checks by the guard: of prompts and of parts of answers, by what came of them."
        labels = ["model_name", "checked", "result"]
        self._checks = Counter("deepseek_serve_guard_checks", text, labels, registry=registry)
        for checked in get_args(Checked):
            for result in get_args(Result):
                self._checks.labels(name, checked, result)
        text = "How long a check takes."
        seconds = Histogram("deepseek_serve_guard_check_seconds", text, labels[:2], buckets=_SECONDS, registry=registry)
        self._seconds = {checked: seconds.labels(name, checked) for checked in get_args(Checked)}
        ProcessCollector("deepseek_serve_guard", lambda: client.engine_pid or "none", registry=registry)
        registry.register(self)

    def count(self, checked: Checked, result: Result, seconds: float) -> None:
        """Count a check."""
        self._checks.labels(self._name, checked, result).inc()
        self._seconds[checked].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the state of the guard's engine; prometheus_client calls this at every scrape."""
        ready = GaugeMetricFamily("deepseek_serve_guard_ready", "1 when the guard takes texts.", labels=["model_name"])
        ready.add_metric([self._name], self._client.info is not None)
        yield ready
        text = "Starts of the guard's engine after it died."
        restarts = CounterMetricFamily("deepseek_serve_guard_restarts", text, labels=["model_name"])
        restarts.add_metric([self._name], self._client.num_restarts)
        yield restarts

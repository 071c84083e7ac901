"""Metrics of batches: their lines and their ends as this server sees them, and the statuses of all in the database."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import Counter as CounterMetric
from prometheus_client import Gauge

from server.storage import LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

    from server.storage.batches import Result

_ENDS = ("completed", "failed", "expired", "cancelled")


class BatchMetrics:
    """Counts lines and batches."""

    def __init__(self, registry: CollectorRegistry, model_name: str, num_in_flight: Callable[[], int]) -> None:
        self._model_name = model_name
        self._lines = CounterMetric(
            "deepseek_serve_batch_lines",
            "Lines of batches that got their result, by where it went: the output file or the error file.",
            ["model_name", "result"],
            registry=registry,
        )
        self._ended = CounterMetric(
            "deepseek_serve_batches_ended",
            "Batches that this server brought to their end.",
            ["model_name", "status"],
            registry=registry,
        )
        self._batches = Gauge(
            "deepseek_serve_batches",
            "Batches of the database that have not ended, by status, when this server looked last.",
            ["model_name", "status"],
            registry=registry,
        )
        self._faults = CounterMetric(
            "deepseek_serve_batch_faults",
            "Times that batches could not be run by a fault of the program; they are tried again.",
            ["model_name"],
            registry=registry,
        ).labels(model_name)
        in_flight = Gauge(
            "deepseek_serve_batch_lines_in_flight", "Lines that are being run.", ["model_name"], registry=registry
        )
        in_flight.labels(model_name).set_function(num_in_flight)
        for result in ("output", "error"):
            self._lines.labels(model_name, result)
        for status in _ENDS:
            self._ended.labels(model_name, status)
        self.show(dict.fromkeys(LIVE, 0))

    def count_lines(self, results: Iterable[Result]) -> None:
        """Count results that were committed."""
        for is_error, count in Counter(result.is_error for result in results).items():
            self._lines.labels(self._model_name, "error" if is_error else "output").inc(count)

    def count_end(self, status: str) -> None:
        """Count the end of a batch."""
        self._ended.labels(self._model_name, status).inc()

    def count_fault(self) -> None:
        """Count a fault of the program."""
        self._faults.inc()

    def show(self, counts: dict[str, int]) -> None:
        """Take in how many batches have each status."""
        for status, count in counts.items():
            self._batches.labels(self._model_name, status).set(count)

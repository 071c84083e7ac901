"""Metrics of batches: their lines and their ends as this server sees them, and the statuses of all in the database."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from server.storage import LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.observe.families import Families
    from server.storage.batches import Result

_ENDS = ("completed", "failed", "expired", "cancelled")


class BatchMetrics:
    """Counts lines and batches."""

    def __init__(self, make: Families, num_in_flight: Callable[[], int]) -> None:
        text = "Lines of batches that got their result, by where it went: the output file or the error file."
        self._lines = make.counters("batch_lines", text, "result", values=("output", "error"))
        text = "Batches that this server brought to their end."
        self._ended = make.counters("batches_ended", text, "status", values=_ENDS)
        text = "Batches of the database that have not ended, by status, when this server looked last."
        self._batches = make.gauges("batches", text, "status")
        text = "Times that batches could not be run by a fault of the program; they are tried again."
        self._faults = make.counter("batch_faults", text)
        make.gauges("batch_lines_in_flight", "Lines that are being run.")().set_function(num_in_flight)
        self.show(dict.fromkeys(LIVE, 0))

    def count_lines(self, results: Iterable[Result]) -> None:
        """Count results that were committed."""
        for is_error, count in Counter(result.is_error for result in results).items():
            self._lines("error" if is_error else "output").inc(count)

    def count_end(self, status: str) -> None:
        """Count the end of a batch."""
        self._ended(status).inc()

    def count_fault(self) -> None:
        """Count a fault of the program."""
        self._faults.inc()

    def show(self, counts: dict[str, int]) -> None:
        """Take in how many batches have each status."""
        for status, count in counts.items():
            self._batches(status).set(count)

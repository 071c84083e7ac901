"""What /metrics says of the guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import ProcessCollector

from server.observe.families import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from server.engine_client import EngineClient
    from server.observe.families import Families

Checked = Literal["prompt", "output"]
Result = Literal["passed", "flagged", "failed"]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class GuardMetrics:
    """Registered beside the server's own; docs/operations.md explains each. Their `model_name` is the guard's."""

    def __init__(self, make: Families, client: EngineClient) -> None:
        self._make, self._client = make, client
        text = "Checks by the guard: of prompts and of parts of answers, by what came of them."
        self._checks = make.counters("guard_checks", text, "checked", "result")
        for checked in get_args(Checked):
            for result in get_args(Result):
                self._checks(checked, result)
        of = make.histograms("guard_check_seconds", "How long a check takes.", _SECONDS, "checked")
        self._seconds = {checked: of(checked) for checked in get_args(Checked)}
        ProcessCollector(f"{PREFIX}guard", lambda: client.engine_pid or "none", registry=make.registry)
        make.registry.register(self)

    def count(self, checked: Checked, result: Result, seconds: float) -> None:
        """Count a check."""
        self._checks(checked, result).inc()
        self._seconds[checked].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the state of the guard's engine; prometheus_client calls this at every scrape."""
        yield self._make.gauge_now("guard_ready", "1 when the guard takes texts.", self._client.info is not None)
        text = "Starts of the guard's engine after it died."
        yield self._make.counter_now("guard_restarts", text, self._client.num_restarts)

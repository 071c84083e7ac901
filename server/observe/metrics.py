"""All Prometheus metrics of one server, and what /metrics writes of them. docs/operations.md explains each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from server.observe.engine_metrics import EngineMetrics
from server.observe.families import Families
from server.observe.http_metrics import HttpMetrics
from server.observe.request_metrics import RequestCounts, RequestTimes
from server.observe.vllm_metrics import VllmNames

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.registry import Collector

    from server.engine_client import EngineClient


class Metrics:
    """The metrics by concern.

    Attributes:
        families: makes further metrics of this server.
        exposed: what /metrics shows: all of the registry, and vLLM's names for it where they are wanted.
    """

    def __init__(self, model_name: str, client: EngineClient, compat: str = "none") -> None:
        """`compat` is --metrics-compat: whose names there are beside our own."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each of the others, which no dashboard reads
        self.registry = CollectorRegistry()
        make = self.families = Families(self.registry, model_name)
        EngineMetrics(make, client)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.http = HttpMetrics(make)
        self.times, self.requests = RequestTimes(make), RequestCounts(make)
        self.reloads = Reloads(make)
        self.exposed: Collector = self.registry if compat == "none" else VllmNames(self.registry, model_name, client)
        self._writing: dict[str, asyncio.Future[bytes]] = {}  # by content type

    async def write(self, encode: Callable[[Collector], bytes], content_type: str) -> bytes:
        """Return what is exposed, in this format. It takes milliseconds: those who ask at the same time share one."""
        if (writing := self._writing.get(content_type)) is None:
            writing = self._writing[content_type] = asyncio.ensure_future(self._write(encode, content_type))
        return await asyncio.shield(writing)

    async def _write(self, encode: Callable[[Collector], bytes], content_type: str) -> bytes:
        await asyncio.sleep(0)  # until all who ask in this turn of the event loop have
        del self._writing[content_type]
        return encode(self.exposed)


class Reloads:
    """Counts how often a file was read again after it had changed, and says whether the latest time went well."""

    def __init__(self, make: Families) -> None:
        text = "Files that were read again after a change, by what they hold (api-keys, tls) and result (ok, error)."
        self._counter = make.counters("reloads", text, "file", "result")
        text = "1 if the file could be read when it changed last, else 0: what it held before is still used."
        self._good = make.gauges("last_reload_successful", text, "file")

    def add(self, file: str) -> None:
        """Have the series of a file, which was read at the start."""
        for result in ("ok", "error"):
            self._counter(file, result)
        self._good(file).set(1)

    def count(self, file: str, *, good: bool) -> None:
        """Count a reload."""
        self._counter(file, "ok" if good else "error").inc()
        self._good(file).set(good)

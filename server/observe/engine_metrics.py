"""Metrics of the engine: its load and its memory, as its latest word has them, and its steps as they come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import ProcessCollector

from engine.engine_info import EngineMemory
from engine.protocol import EngineStats
from server.observe.families import PREFIX
from server.observe.request_metrics import FAST, TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from server.engine_client import EngineClient
    from server.observe.families import Families


class EngineMetrics:
    """A collector of prometheus_client; and histograms of steps, which the client tells of."""

    def __init__(self, make: Families, client: EngineClient) -> None:
        """Register; the engine's process, where most memory and time goes, has a collector of its own."""
        self._make, self._client, self._start_time = make, client, time.time()
        make.registry.register(self)
        ProcessCollector(f"{PREFIX}engine", lambda: client.engine_pid or "none", registry=make.registry)
        self._step_seconds = make.histogram("step_seconds", "How long the engine's steps take.", FAST)
        text = "Tokens that a step computes, of prompts and outputs."
        self._step_tokens = make.histogram("step_tokens", text, TOKENS)
        client.on_step = self._observe_step

    def _observe_step(self, before: EngineStats, now: EngineStats) -> None:
        """Take in a step of the engine's, if there was one; one that was started again counts from 0."""
        num_tokens = now.step_tokens - before.step_tokens
        if num_tokens > 0 and now.num_steps - before.num_steps == 1:  # an engine in this process may be an old one
            self._step_seconds.observe(now.step_seconds - before.step_seconds)
            self._step_tokens.observe(num_tokens)

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's load; prometheus_client calls this at every scrape."""
        gauge, counter, client = self._make.gauge_now, self._make.counter_now, self._client
        stats = client.stats or EngineStats(0, 0, 0, num_blocks=1)
        yield gauge("ready", "1 when the engine takes requests, else 0.", client.info is not None)
        yield gauge("start_time_seconds", "Unix time at which the server was started.", self._start_time)
        yield gauge("requests_running", "Sequences in the running batch.", stats.num_running)
        yield gauge("requests_waiting", "Sequences that wait for their first step, or again.", stats.num_waiting)
        yield gauge("kv_cache_usage_ratio", "KV blocks that live sequences hold, over all.", stats.kv_cache_usage_ratio)
        text = "Memory that the engine takes once all of its KV cache has been used, by part."
        memory = EngineMemory() if client.info is None else client.info.memory  # zeros until it is known
        yield self._make.gauges_now("memory_bytes", text, "part", msgspec.structs.asdict(memory))
        yield counter("engine_restarts", "Starts of the engine after it died.", client.num_restarts)
        yield counter("preemptions", "Sequences sent back to wait because blocks ran out.", stats.num_preemptions)
        yield counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.num_prompt_tokens)
        yield counter("prefix_cache_hits", "Prompt tokens that it had.", stats.num_cached_tokens)
        text = "How long the latest start took, or has taken."
        yield gauge("engine_start_seconds", text, client.startup.seconds)
        yield counter("steps", "Steps that the engine has computed.", stats.num_steps)
        text = "The sum over steps of how full each was, from 0 to 1; rate(packed_steps) / rate(steps) is the packing."
        yield counter("packed_steps", text, stats.packing)

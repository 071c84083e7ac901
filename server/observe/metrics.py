"""Prometheus metrics. Times are taken in the server, as clients see them; load is the engine's latest stats."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from engine.engine_info import EngineMemory
from engine.protocol import EngineStats
from server.http.request_record import current
from server.observe.http_metrics import HttpMetrics
from server.observe.vllm_metrics import VllmNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

    from server.engine_client import EngineClient

_FAST = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1, 2.5, 5, 10,
)  # fmt: skip
_SLOW = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
ApiTask = Literal["generate", "embed", "classify"]  # what an API request can ask the engine for
REFUSALS = (
    *("queue_full", "queue_timeout", "rate_limited", "draining", "unavailable", "unauthorized", "untrusted_host"),
    *("invalid", "content_filter", "too_large"),
)
LIMITS = ("running", "requests", "tokens")  # of a client (server.rate_limits)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """All metrics of one server; docs/operations.md explains each."""

    def __init__(self, model_name: str, client: EngineClient, compat: str = "none") -> None:
        """`compat` is --metrics-compat: whose names there are beside our own."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each of the others, which no dashboard reads
        self.registry = CollectorRegistry()
        self._client, self._model_name, self._start_time = client, model_name, time.time()
        self.registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        engine = "deepseek_serve_engine"  # a process of its own, where most memory and time goes
        ProcessCollector(engine, lambda: client.engine_pid or "none", registry=self.registry)
        self.http = HttpMetrics(model_name, self.registry)
        self._exposed: Collector = self.registry if compat == "none" else VllmNames(self.registry, model_name, client)
        self._writing: dict[str, asyncio.Future[bytes]] = {}  # by content type
        self.num_generated = 0  # the counter generation_tokens as a number

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(f"deepseek_serve_{name}", text, ["model_name"], buckets=buckets, registry=self.registry)
            return metric.labels(model_name)

        def labelled(name: str, text: str, label: str) -> Counter:
            return Counter(f"deepseek_serve_{name}", text, ["model_name", label], registry=self.registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"deepseek_serve_{name}", text, ["model_name"], registry=self.registry).labels(model_name)

        self.time_to_first_token = histogram("time_to_first_token_seconds", "From arrival to the first token.", _SLOW)
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds",
            "Between a token and the one before it in its sequence: the latency per token.",
            _FAST,
        )
        self.e2e_latency = histogram("e2e_request_latency_seconds", "From arrival to the end of the request.", _SLOW)
        self.queue_time = histogram("request_queue_time_seconds", "From arrival to the sequence's first step.", _SLOW)
        self.prefill_time = histogram(
            "request_prefill_time_seconds", "A sequence's first step to its first token.", _SLOW
        )
        self.decode_time = histogram("request_decode_time_seconds", "A sequence's first token to its last.", _SLOW)
        self.inference_time = histogram(
            "request_inference_time_seconds", "A sequence's first step to its last token.", _SLOW
        )
        self._step_seconds = histogram("step_seconds", "How long the engine's steps take.", _FAST)
        self._step_tokens = histogram("step_tokens", "Tokens that a step computes, of prompts and outputs.", _TOKENS)
        client.on_step = self._observe_step
        self.time_per_output_token = histogram(
            "request_time_per_output_token_seconds", "The same, for each token after the first.", _FAST
        )
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of all requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated for all requests.")
        reasons = "stop, length, content_filter, abort (nobody waits any more), timeout, error"
        self._finished = labelled(
            "sequences_finished", f"Sequences that ended, by reason: {reasons}.", "finished_reason"
        )
        for reason in ("stop", "length", "content_filter", "abort", "error", "timeout"):
            self._finished.labels(model_name, reason)
        text = "Requests that were answered with an error and never started, by reason."
        self._refused = labelled("requests_refused", text, "reason")
        for reason in REFUSALS:
            self._refused.labels(model_name, reason)
        self._tasks = labelled("task_requests", "Requests that were given to the engine, by task.", "task")
        for task in get_args(ApiTask):
            self._tasks.labels(model_name, task)
        by_key = "by the name of the API key; none without keys."
        self._key_prompt_tokens = labelled("key_prompt_tokens", f"Prompt tokens {by_key}", "key")
        self._key_generation_tokens = labelled("key_generation_tokens", f"Tokens generated, {by_key}", "key")
        text = "Requests refused by a limit of their client: running, requests or tokens (a minute)."
        labels = ["model_name", "key", "limit"]
        self._key_limited = Counter("deepseek_serve_key_limited", text, labels, registry=self.registry)
        self.reloads = Reloads(model_name, self.registry)

    @property
    def exposed(self) -> Collector:
        """What /metrics shows: all of these, and vLLM's names for them where they are wanted."""
        return self._exposed

    async def write(self, encode: Callable[[Collector], bytes], content_type: str) -> bytes:
        """Return what is exposed, in this format. It takes milliseconds: those who ask at the same time share one."""
        if (writing := self._writing.get(content_type)) is None:
            writing = self._writing[content_type] = asyncio.ensure_future(self._write(encode, content_type))
        return await asyncio.shield(writing)

    async def _write(self, encode: Callable[[Collector], bytes], content_type: str) -> bytes:
        await asyncio.sleep(0)  # until all who ask in this turn of the event loop have
        del self._writing[content_type]
        return encode(self._exposed)

    def _observe_step(self, before: EngineStats, now: EngineStats) -> None:
        """Take in a step of the engine's, if there was one; one that was started again counts from 0."""
        num_tokens = now.step_tokens - before.step_tokens
        if num_tokens > 0 and now.num_steps - before.num_steps == 1:  # an engine in this process may be an old one
            self._step_seconds.observe(now.step_seconds - before.step_seconds)
            self._step_tokens.observe(num_tokens)

    def count_finished(self, reason: str) -> None:
        """Count the end of a sequence."""
        if (record := current()) is not None:
            record.finish_reasons.add(reason)
        self._finished.labels(self._model_name, reason).inc()

    def count_task(self, task: ApiTask) -> None:
        """Count a request that is given to the engine."""
        self._tasks.labels(self._model_name, task).inc()

    def count_refused(self, reason: str) -> None:
        """Count a request that is refused, for one of `REFUSALS`."""
        self._refused.labels(self._model_name, reason).inc()

    def count_limited(self, key_name: str, limit: str) -> None:
        """Count a request that one of `LIMITS` of its client refuses; `count_refused` counts it too."""
        self._key_limited.labels(self._model_name, key_name, limit).inc()

    def add_key(self, name: str) -> None:
        """Have the series of a key from 0 on: rates leave out the first value of a series."""
        self.tokens_of_key(name)
        for limit in LIMITS:
            self._key_limited.labels(self._model_name, name, limit)

    def tokens_of_key(self, name: str) -> tuple[Counter, Counter]:
        """Return the counters of one key's prompt tokens and generated tokens."""
        counters = (self._key_prompt_tokens, self._key_generation_tokens)
        prompt, generation = (counter.labels(self._model_name, name) for counter in counters)
        return prompt, generation

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's load; prometheus_client calls this at every scrape."""
        stats = self._client.stats or EngineStats(0, 0, 0, num_blocks=1)

        def metric(kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, value: float) -> Metric:
            family = kind(f"deepseek_serve_{name}", text, labels=["model_name"])
            family.add_metric([self._model_name], value)
            return family

        gauge, counter = partial(metric, GaugeMetricFamily), partial(metric, CounterMetricFamily)
        yield gauge("ready", "1 when the engine takes requests, else 0.", self._client.info is not None)
        yield gauge("start_time_seconds", "Unix time at which the server was started.", self._start_time)
        yield gauge("requests_running", "Sequences in the running batch.", stats.num_running)
        yield gauge("requests_waiting", "Sequences that wait for their first step, or again.", stats.num_waiting)
        yield gauge("kv_cache_usage_ratio", "KV blocks that live sequences hold, over all.", stats.kv_cache_usage_ratio)
        yield self._memory()
        yield counter("engine_restarts", "Starts of the engine after it died.", self._client.num_restarts)
        yield counter("preemptions", "Sequences sent back to wait because blocks ran out.", stats.num_preemptions)
        yield counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.num_prompt_tokens)
        yield counter("prefix_cache_hits", "Prompt tokens that it had.", stats.num_cached_tokens)
        yield gauge(
            "engine_start_seconds", "How long the latest start took, or has taken.", self._client.startup.seconds
        )
        yield counter("steps", "Steps that the engine has computed.", stats.num_steps)
        yield counter(
            "packed_steps",
            "The sum over steps of how full each was, from 0 to 1; rate(packed_steps) / rate(steps) is the packing.",
            stats.packing,
        )

    def _memory(self) -> Metric:
        """The engine's memory by part, 0 until it is known."""
        text = "Memory that the engine takes once all of its KV cache has been used, by part."
        family = GaugeMetricFamily("deepseek_serve_memory_bytes", text, labels=["model_name", "part"])
        info = self._client.info
        for part, num_bytes in msgspec.structs.asdict(info.memory if info is not None else EngineMemory()).items():
            family.add_metric([self._model_name, part], num_bytes)
        return family


class Reloads:
    """Counts how often a file was read again after it had changed, and says whether the latest time went well."""

    def __init__(self, model_name: str, registry: CollectorRegistry) -> None:
        text = "Files that were read again after a change, by what they hold (api-keys, tls) and result (ok, error)."
        self._counter = Counter("deepseek_serve_reloads", text, ["model_name", "file", "result"], registry=registry)
        text = "1 if the file could be read when it changed last, else 0: what it held before is still used."
        self._good = Gauge("deepseek_serve_last_reload_successful", text, ["model_name", "file"], registry=registry)
        self._model_name = model_name

    def add(self, file: str) -> None:
        """Have the series of a file, which was read at the start."""
        for result in ("ok", "error"):
            self._counter.labels(self._model_name, file, result)
        self._good.labels(self._model_name, file).set(1)

    def count(self, file: str, *, good: bool) -> None:
        """Count a reload."""
        self._counter.labels(self._model_name, file, "ok" if good else "error").inc()
        self._good.labels(self._model_name, file).set(good)

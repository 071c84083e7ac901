"""vLLM's names for our metrics (--metrics-compat vllm), so that dashboards and autoscalers made for it work unchanged.

Each is the same series under another name, with our finer buckets. What we do not measure has no name here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

    from server.engine_client import EngineClient

_OURS, _THEIRS = "deepseek_serve_", "vllm:"
NAMES = {  # counters without _total
    "requests_running": ("num_requests_running",),
    "requests_waiting": ("num_requests_waiting",),
    "kv_cache_usage_ratio": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),  # until and before 0.10
    "preemptions": ("num_preemptions",),
    "prefix_cache_queries": ("prefix_cache_queries",),
    "prefix_cache_hits": ("prefix_cache_hits", "prompt_tokens_cached"),
    "prompt_tokens": ("prompt_tokens",),
    "generation_tokens": ("generation_tokens",),
    "sequences_finished": ("request_success",),
    "time_to_first_token_seconds": ("time_to_first_token_seconds",),
    "inter_token_latency_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "request_time_per_output_token_seconds": ("request_time_per_output_token_seconds",),
    "e2e_request_latency_seconds": ("e2e_request_latency_seconds",),
    "request_queue_time_seconds": ("request_queue_time_seconds",),
    "request_prefill_time_seconds": ("request_prefill_time_seconds",),
    "request_decode_time_seconds": ("request_decode_time_seconds",),
    "request_inference_time_seconds": ("request_inference_time_seconds",),
    "step_tokens": ("iteration_tokens_total",),
    "request_prompt_tokens": ("request_prompt_tokens",),
    "request_generation_tokens": ("request_generation_tokens",),
}


class VllmNames:
    """A collector of all that a registry has, and of its renamed copies."""

    def __init__(self, registry: CollectorRegistry, model_name: str, client: EngineClient) -> None:
        self._registry, self._model_name, self._client = registry, model_name, client

    def collect(self) -> Iterator[Metric]:
        """Yield metrics; prometheus_client calls this at every scrape."""
        for metric in self._registry.collect():
            yield metric
            for name in NAMES.get(metric.name.removeprefix(_OURS), ()):
                yield _renamed(metric, _THEIRS + name)
        info = self._client.info
        labels = {
            "model_name": self._model_name,
            "block_size": str(info.block_size if info else 0),
            "num_gpu_blocks": str(info.num_blocks if info else 0),
        }
        config = GaugeMetricFamily(f"{_THEIRS}cache_config_info", "The KV cache's blocks.", labels=list(labels))
        config.add_metric(list(labels.values()), 1)
        yield config


def _renamed(metric: Metric, name: str) -> Metric:
    copy = Metric(name, metric.documentation, metric.type)
    copy.samples = [sample._replace(name=name + sample.name.removeprefix(metric.name)) for sample in metric.samples]
    return copy

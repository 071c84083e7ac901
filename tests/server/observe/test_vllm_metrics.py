"""--metrics-compat vllm: the same series under the names that vLLM's dashboards ask for."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from server.observe.metrics import Metrics
from server.observe.request_timer import RequestTimer
from server.observe.vllm_metrics import NAMES
from tests.support.no_engine import NoEngine

ASKED_FOR = [  # by vLLM's own Grafana dashboard, and by the Gateway API Inference Extension
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    *("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total"),
    *("vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket"),
    *("vllm:e2e_request_latency_seconds_sum", "vllm:request_queue_time_seconds_sum"),
    *("vllm:request_prefill_time_seconds_sum", "vllm:request_decode_time_seconds_sum"),
    *("vllm:request_prompt_tokens_bucket", "vllm:request_generation_tokens_bucket", "vllm:num_preemptions_total"),
    *("vllm:request_inference_time_seconds_bucket", "vllm:iteration_tokens_total_bucket"),
    *("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:cache_config_info"),
]


@pytest.fixture
def values():
    metrics = Metrics("m", NoEngine(), "vllm")
    timer = RequestTimer(metrics, 0.0, 7)
    timer.tokens(0, 2, 0.5)
    timer.end()
    text = generate_latest(metrics.exposed).decode()
    return {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}


def test_every_name_that_dashboards_ask_for_is_there_with_our_value(values):
    assert set(ASKED_FOR) <= values.keys()
    assert values["vllm:generation_tokens_total"] == values["deepseek_serve_generation_tokens_total"] == 2
    assert values["vllm:request_prompt_tokens_sum"] == 7


def test_each_of_our_names_that_is_mapped_exists(values):
    ours = {name.removeprefix("deepseek_serve_") for name in values}
    for name in NAMES:
        assert ours & {name, f"{name}_total", f"{name}_bucket"}, name


def test_without_the_flag_there_are_none_and_no_series_says_when_it_was_created():
    text = generate_latest(Metrics("m", NoEngine()).exposed).decode()
    assert "vllm" not in text
    assert "_created" not in text


def test_openmetrics_parses():
    text = generate_openmetrics(Metrics("m", NoEngine(), "vllm").exposed).decode()
    assert len(list(parse_openmetrics(text))) > 40
    assert "_created" not in text

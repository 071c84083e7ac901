"""Metric names, buckets and what they count."""

import msgspec
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine.engine_info import EngineMemory
from engine.protocol import EngineStats
from server.app import create_app
from server.http.api_keys import ApiKeys, Caller
from server.observe.metrics import Metrics
from server.observe.request_timer import RequestTimer
from tests.support.no_engine import POOLING_INFO, NoEngine

HISTOGRAMS = [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
    "step_seconds",
    "request_time_per_output_token_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
]


@pytest.fixture
def client():
    return NoEngine()


@pytest.fixture
def metrics(client):
    return Metrics("tiny", client)


def samples(metrics):
    """Sample name and labels but model_name's -> value."""
    text = generate_latest(metrics.registry).decode()
    return {
        " ".join([sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "model_name")]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_has_the_prefix_the_model_and_a_help_text(metrics):
    families = [
        family
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        if not family.name.startswith(("process_", "python_", "deepseek_serve_engine_process_"))  # the library's own
    ]
    names = {family.name.removeprefix("deepseek_serve_") for family in families}
    gauges = {"requests_running", "requests_waiting", "kv_cache_usage_ratio"}
    counters = {"prompt_tokens", "generation_tokens", "sequences_finished", "preemptions"}
    assert {*HISTOGRAMS, *gauges, *counters} - names == set()
    assert all(family.name.startswith("deepseek_serve_") for family in families)
    assert all(family.documentation for family in families)
    assert {sample.labels["model_name"] for family in families for sample in family.samples} == {"tiny"}


@pytest.mark.parametrize("name", [name for name in HISTOGRAMS if name.endswith("_seconds")])
def test_latency_buckets_begin_at_half_a_millisecond(metrics, name):
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    buckets = [float(s.labels["le"]) for s in families[f"deepseek_serve_{name}"].samples if s.name.endswith("_bucket")]
    assert buckets[0] == 0.0005
    assert buckets[-1] == float("inf")
    assert buckets == sorted(set(buckets))


def test_load_is_the_engines_latest_word(client, metrics):
    assert samples(metrics)["deepseek_serve_kv_cache_usage_ratio"] == 0
    client.stats = EngineStats(num_running=3, num_waiting=2, num_used_blocks=5, num_blocks=20, num_preemptions=7)
    found = samples(metrics)
    assert found["deepseek_serve_requests_running"] == 3
    assert found["deepseek_serve_requests_waiting"] == 2
    assert found["deepseek_serve_kv_cache_usage_ratio"] == 0.25
    assert found["deepseek_serve_preemptions_total"] == 7


def test_memory_is_there_by_part_once_the_engine_is_ready(client, metrics):
    name = "deepseek_serve_memory_bytes"
    parts = {"weights": 5, "kv_cache": 7, "other": 9}
    assert {part: samples(metrics)[f"{name} {part}"] for part in parts} == dict.fromkeys(parts, 0)
    client._ready(msgspec.structs.replace(POOLING_INFO, memory=EngineMemory(**parts)))
    assert {part: samples(metrics)[f"{name} {part}"] for part in parts} == parts


def test_reasons_for_an_end_are_counted_from_zero(metrics):
    metrics.requests.count_finished("stop")
    found = samples(metrics)
    counts = {
        reason: found[f"deepseek_serve_sequences_finished_total {reason}"]
        for reason in ("stop", "length", "abort", "error")
    }
    assert counts == {"stop": 1, "length": 0, "abort": 0, "error": 0}


@pytest.mark.parametrize(("callers", "name"), [((), "none"), ([Caller.of_key("secret", 1.0, "alice")], "alice")])
def test_tokens_of_keys_are_counted_from_zero(callers, name, tiny_tokenizer, tiny_llama):
    app = create_app(NoEngine(), tiny_tokenizer, "tiny", tiny_llama, keys=ApiKeys(callers))
    found = samples(app.state.server.metrics)
    assert found[f"deepseek_serve_key_prompt_tokens_total {name}"] == 0
    assert found[f"deepseek_serve_key_generation_tokens_total {name}"] == 0


def test_a_requests_times_and_tokens_are_counted(monkeypatch, metrics):
    clock = [100.0]
    monkeypatch.setattr("server.observe.request_timer.time.monotonic", lambda: clock[0])
    timer = RequestTimer(metrics, 100.0, num_prompt_tokens=5)
    for choice, tick, num_tokens in ((0, 0.5, 1), (1, 0.0, 1), (0, 0.25, 1), (0, 0.5, 2), (1, 0.0, 1)):
        clock[0] += tick
        timer.tokens(choice, num_tokens, queue_time=0.125 if num_tokens == 1 and clock[0] == 100.5 else None)
    timer.end()
    found = {name.removeprefix("deepseek_serve_"): value for name, value in samples(metrics).items()}
    assert found["prompt_tokens_total"] == 5
    assert found["generation_tokens_total"] == 6
    assert (found["time_to_first_token_seconds_count"], found["time_to_first_token_seconds_sum"]) == (2, 1.0)
    assert (found["inter_token_latency_seconds_count"], found["inter_token_latency_seconds_sum"]) == (4, 1.5)
    assert (found["request_queue_time_seconds_count"], found["request_queue_time_seconds_sum"]) == (2, 0.25)
    assert found["e2e_request_latency_seconds_sum"] == 1.25
    assert found["request_prompt_tokens_sum"] == 5
    assert found["request_generation_tokens_sum"] == 6


async def test_steps_are_timed_and_measured(api):
    names = ("step_tokens_sum", "step_tokens_count", "step_seconds_count", "request_inference_time_seconds_count")
    await api.complete("hello", max_tokens=1)  # the engine has served other tests, whose steps come with its first word
    before = [await api.metric(name) for name in names]
    await api.complete("hello", max_tokens=4, ignore_eos=True)
    after = [await api.metric(name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [5 + 3, 4, 4, 1]  # of the last token, none
    assert await api.metric("step_seconds_sum") > 0
    assert await api.metric("engine_start_seconds") >= 0


def test_a_restarted_engine_counts_its_steps_from_zero(client, metrics):
    def stats(num_steps, seconds, num_tokens):
        return EngineStats(0, 0, 0, 1, num_steps=num_steps, step_seconds=seconds, step_tokens=num_tokens)

    client.on_step(stats(7, 9.0, 50), stats(0, 0.0, 0))
    client.on_step(stats(0, 0.0, 0), stats(1, 0.25, 3))
    client.on_step(stats(1, 0.25, 3), stats(1, 0.25, 3))
    found = samples(metrics)
    assert (found["deepseek_serve_step_seconds_sum"], found["deepseek_serve_step_tokens_sum"]) == (0.25, 3)

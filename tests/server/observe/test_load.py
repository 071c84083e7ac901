"""The figures of /load, and the line that is logged while there is work."""

import asyncio
import logging

import pytest

from engine.protocol import EngineStats
from server.observe.load import Load
from server.observe.metrics import Metrics
from tests.support.no_engine import NoEngine


@pytest.fixture
def client():
    return NoEngine()


@pytest.fixture
def metrics(client):
    return Metrics("m", client)


def test_rates_are_of_the_last_ten_seconds(client, metrics):
    now = 0.0
    load = Load(client, metrics, lambda: now)
    assert load.snapshot()["generation_tokens_per_second"] == 0
    for second in range(1, 31):
        now = float(second)
        metrics.requests.num_generated += 100 if second <= 20 else 10
        client.stats = EngineStats(2, 3, 5, 10, 0, 60 * second, 45 * second)
        snapshot = load.snapshot()
    assert snapshot["generation_tokens_per_second"] == pytest.approx(10, abs=0.1)
    assert snapshot["prompt_tokens_per_second"] == pytest.approx(60, abs=0.1)
    assert snapshot["prefix_cache_hit_rate"] == 0.75
    assert (snapshot["running"], snapshot["waiting"], snapshot["kv_cache_usage"]) == (2, 3, 0.5)


def test_an_engine_that_was_started_again_has_no_negative_rate(client, metrics):
    now = 0.0
    load = Load(client, metrics, lambda: now)
    client.stats = EngineStats(0, 0, 0, 1, 0, 1000, 100)
    load.snapshot()
    now, client.stats = 1.0, EngineStats(0, 0, 0, 1)
    assert load.snapshot()["prompt_tokens_per_second"] == 0


def test_a_line_says_what_happened_and_idle_time_has_none(client, metrics):
    now = 0.0
    load = Load(client, metrics, lambda: now)
    before, now = load.sample(), 10.0
    assert load.line(before, load.sample()) is None
    client.stats = EngineStats(0, 0, 1, 8, 0, 1000, 250)
    metrics.requests.num_generated = 5000
    after = load.sample()
    expected = "running 0, waiting 0; tokens/s: 100 in, 500 out; KV cache 12.5% in use, prefix cache hits 25%"
    assert load.line(before, after) == expected
    assert load.line(after, after) is None
    client.stats = EngineStats(1, 0, 1, 8, 0, 1000, 250)
    line = load.line(after, after)
    assert line is not None
    assert line.startswith("running 1, ")


async def test_lines_come_at_the_interval_until_cancelled(client, metrics, caplog):
    caplog.set_level(logging.INFO, "server.observe.load")
    client.stats = EngineStats(1, 0, 1, 8)
    load = Load(client, metrics)
    task = asyncio.create_task(load.watch(0.001))
    async with asyncio.timeout(10):
        while len(caplog.records) < 2:
            await asyncio.sleep(0.001)
    task.cancel()
    metrics.requests.num_generated = 7
    assert load.snapshot()["generation_tokens_per_second"] > 0  # since the samples that were taken meanwhile


async def test_the_route_says_what_runs_and_how_much_may(api):
    snapshot = (await api.http.get("/load")).json()
    assert (snapshot["status"], snapshot["model"], snapshot["running"]) == ("ready", "tiny", 0)
    assert (snapshot["max_batch_size"], snapshot["max_model_len"]) == (16, 512)

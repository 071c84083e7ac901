"""What the scheduler promises, seen by the load client through HTTP: shared prefixes, refusals, nothing left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.load import report, workload
from benchmarks.load.runner import Endpoint, Run, run
from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = 1024
REQUESTS = 64


def load(rate: float | None, concurrency: int = 8, requests: int = REQUESTS, output_len: str = "8") -> workload.Load:
    lengths = workload.Lengths.parse("16"), workload.Lengths.parse(output_len)
    return workload.Load(*lengths, requests=requests, rate=rate, concurrency=concurrency)


async def measure(server: ServerProcess, load: workload.Load, *, shared_prefix: int = 0, seed: int = 0) -> Run:
    body = {"ignore_eos": True, "temperature": 0}
    prompts = workload.Prompts(vocab_size=256, shared_prefix=shared_prefix)
    return await run(Endpoint(server.url, body=body, timeout=120), [workload.generate(load, prompts, seed)])


def check_nothing_is_left(server: ServerProcess) -> None:
    for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
        server.until(lambda name=name: server.metric(name) == 0)


@pytest.mark.parametrize("rate", [None, float("inf")], ids=["8 at a time", "all at once"])
async def test_a_shared_system_prompt_is_computed_once(server: ServerProcess, rate: float | None) -> None:
    result = await measure(server, load(rate), shared_prefix=PREFIX, seed=1 if rate else 2)
    summary = report.summarise(result, {})
    assert (summary["completed"], summary["prompt_tokens"]) == (REQUESTS, REQUESTS * (PREFIX + 16))
    assert summary["cached_tokens"] >= 0.9 * REQUESTS * PREFIX
    assert summary["output_tokens"] == REQUESTS * 8
    check_nothing_is_left(server)


@pytest.fixture
def small_queue(flags: tuple[str, ...], tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, *flags, "--max-queued-requests", "4", "--max-batch-size", "4") as server:
        yield server


async def test_ten_times_what_it_can_take_is_refused_and_leaves_nothing(small_queue: ServerProcess) -> None:
    capacity = await measure(small_queue, load(None, concurrency=4, requests=24, output_len="64"))
    rate = 10 * report.summarise(capacity, {})["requests_per_second"]
    result = await measure(small_queue, load(rate, requests=300, output_len="64"), seed=1)
    summary = report.summarise(result, {})
    [(kind, refused)] = summary["errors"].items()
    assert kind == "429"
    assert refused["with_retry_after"] == refused["count"]
    assert 1 <= refused["max_retry_after"] <= 60
    assert refused["count"] > 150  # all but what it can take in that time, and what may wait
    assert summary["completed"] == 300 - refused["count"] >= 8
    assert summary["output_tokens"] == 64 * summary["completed"]
    assert all(answer.retry_after is not None and not answer.arrivals for answer in result.answers if answer.error)
    check_nothing_is_left(small_queue)
    assert small_queue.metric("sequences_finished_total", finished_reason="abort") == 0
    again = await measure(small_queue, load(None, concurrency=4, requests=8), seed=2)
    assert all(answer.error is None for answer in again.answers)

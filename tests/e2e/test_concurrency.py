"""Many clients at once: each gets what it would get alone, and nothing is left when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import TYPE_CHECKING, Any

import httpx
import pytest_asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.server_process import ServerProcess

NUM_CLIENTS = 32


@pytest_asyncio.fixture
async def http(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, trust_env=False) as http:
        yield http


async def stream(
    http: httpx.AsyncClient, body: dict[str, Any], leave_after: int | None = None
) -> tuple[str, list[int]]:
    """Text and tokens of a stream, which must end in order; or those of its first chunks, then hang up."""
    text, token_ids, reason, done = "", [], None, False
    body = body | {"stream": True, "return_token_ids": True}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        number = 0
        async for line in response.aiter_lines():
            if not line:
                continue
            assert not done
            if line == "data: [DONE]":
                done = True
                continue
            [choice] = json.loads(line.removeprefix("data: "))["choices"]
            assert reason is None
            text += choice["text"]
            token_ids += choice["token_ids"]
            reason = choice["finish_reason"]
            number += 1
            if number == leave_after:
                return text, token_ids
    assert done
    assert reason in ("length", "stop")
    return text, token_ids


def requests(seed: int) -> list[dict[str, Any]]:
    """Different prompts, lengths and parameters."""
    rng = random.Random(seed)
    bodies: list[dict[str, Any]] = []
    for i in range(NUM_CLIENTS):
        body = {
            "prompt": rng.choices(range(256), k=rng.choice([1, 3, 15, 16, 17, 60, 300, 700])),
            "max_tokens": rng.randint(1, 48),
            "ignore_eos": rng.random() < 0.5,
            "temperature": 0,
            "seed": i,
        }
        if rng.random() < 0.3:
            body["stop"] = ["e", "\N{REPLACEMENT CHARACTER}a"]
        bodies.append(body)
    return bodies


async def test_each_of_many_streams_gets_what_it_gets_alone(server: ServerProcess, http: httpx.AsyncClient) -> None:
    bodies = requests(1)
    alone = [await stream(http, body) for body in bodies]
    together = await asyncio.gather(*(stream(http, body) for body in bodies))
    assert together == alone
    assert len({tuple(token_ids) for _, token_ids in alone}) > NUM_CLIENTS // 2  # they do differ
    assert server.metric("kv_cache_usage_ratio") == 0
    assert server.metric("requests_running") == server.metric("requests_waiting") == 0


async def test_sampled_streams_depend_on_their_seed_alone(http: httpx.AsyncClient) -> None:
    bodies = [body | {"temperature": 1, "top_p": 0.9, "max_tokens": 24} for body in requests(2)[:12]]
    alone = [await stream(http, body) for body in bodies]
    assert await asyncio.gather(*(stream(http, body) for body in bodies)) == alone


async def test_clients_that_hang_up_free_their_blocks(server: ServerProcess, http: httpx.AsyncClient) -> None:
    aborted = server.metric("sequences_finished_total", finished_reason="abort")
    long = {"max_tokens": 15_000, "ignore_eos": True, "temperature": 0}
    bodies = [long | {"prompt": f"client {i}"} for i in range(8)]
    await asyncio.gather(*(stream(http, body, leave_after=1 + i % 4) for i, body in enumerate(bodies)))
    server.until(lambda: server.metric("kv_cache_usage_ratio") == 0)
    assert server.metric("sequences_finished_total", finished_reason="abort") == aborted + 8
    assert server.metric("requests_running") == server.metric("requests_waiting") == 0


async def test_clients_that_give_up_waiting_free_their_blocks(server: ServerProcess, http: httpx.AsyncClient) -> None:
    aborted = server.metric("sequences_finished_total", finished_reason="abort")
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 15_000, "ignore_eos": True}
    waiting = asyncio.create_task(http.post("/v1/completions", json=body))
    await asyncio.to_thread(server.until, lambda: server.metric("requests_running") == 4)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    server.until(lambda: server.metric("kv_cache_usage_ratio") == 0)
    assert server.metric("sequences_finished_total", finished_reason="abort") == aborted + 4


async def test_those_who_stay_are_not_disturbed_by_those_who_leave(http: httpx.AsyncClient) -> None:
    staying = requests(3)[:8]
    alone = [await stream(http, body) for body in staying]
    leaving = [{"prompt": f"leaver {i}", "max_tokens": 15_000, "ignore_eos": True} for i in range(8)]
    results = await asyncio.gather(
        *(stream(http, body) for body in staying),
        *(stream(http, body, leave_after=1 + i) for i, body in enumerate(leaving)),
    )
    assert list(results[:8]) == alone

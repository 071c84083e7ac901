"""Two engine replicas on Ray: the tokens of one process, aborts that free blocks, and replicas that are killed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch

from tests.support.running import generate, greedy_params, load, make_prompt, pool

pytest.importorskip("ray", reason="make ray-test installs Ray in an environment of its own")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray raises some

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.deploy.ray.conftest import Cluster

NUM_TOKENS = 200
LONG = {"max_tokens": 15_000, "ignore_eos": True, "temperature": 0}


@dataclass
class Answer:
    """What a stream brought, and how it ended."""

    token_ids: list[int] = field(default_factory=list)
    reason: str | None = None
    error: dict[str, Any] | None = None
    done: bool = False


async def events(response: httpx.Response) -> AsyncIterator[bytes]:
    """What follows each `data: `. httpx would also split lines at the characters of the text that end a line."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            yield event.removeprefix(b"data: ")


async def stream(
    http: httpx.AsyncClient, started: asyncio.Semaphore | None = None, leave_after: int | None = None, **body: Any
) -> Answer:
    """A stream to its end, or its first chunks; `started` is released with the first one."""
    answer, number = Answer(), 0
    async with http.stream(
        "POST", "/v1/completions", json=body | {"stream": True, "return_token_ids": True}
    ) as response:
        assert response.status_code == 200
        async for data in events(response):
            assert not answer.done
            if data == b"[DONE]":
                answer.done = True
                continue
            event = json.loads(data)
            if "error" in event:
                answer.error = event["error"]
                continue
            for choice in event["choices"]:
                answer.token_ids += choice["token_ids"]
                answer.reason = choice["finish_reason"]
            number += 1
            if number == 1 and started is not None:
                started.release()
            if number == leave_after:
                break
    return answer


def expected(cluster: Cluster, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    """What one engine in one process answers."""
    engine = load(cluster.model)
    return [result.token_ids for result in generate(engine, prompts, greedy_params(num_tokens))]


def bodies(prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0} for prompt in prompts]


async def test_greedy_tokens_are_those_of_one_process(cluster: Cluster) -> None:
    prompts = [make_prompt(length, seed=length) for length in (1, 15, 16, 17, 60, 300, 700, 33)]
    before = {name: report.stats.num_prompt_tokens for name, report in cluster.replicas().items()}
    async with cluster.client() as http:
        answers = await asyncio.gather(*(stream(http, **body) for body in bodies(prompts)))
    assert [answer.token_ids for answer in answers] == expected(cluster, prompts)
    assert all(answer.done and answer.reason == "length" for answer in answers)
    assert all(report.stats.num_prompt_tokens > before[name] for name, report in cluster.replicas().items())


async def test_embeddings_are_those_of_one_process(cluster: Cluster) -> None:
    prompts = [make_prompt(length, seed=length) for length in (1, 15, 33, 300)]
    async with cluster.client() as http:
        answer = await http.post("/v1/embeddings", json={"input": prompts, "normalize": False})
    vectors = torch.tensor([data["embedding"] for data in answer.json()["data"]])
    torch.testing.assert_close(vectors, pool(load(cluster.model), prompts), atol=1e-4, rtol=1e-4)


async def test_keys_and_errors_are_as_on_one_machine(cluster: Cluster) -> None:
    assert cluster.get("/v1/models").status_code == 401
    async with cluster.client() as http:
        assert (await http.get("/v1/models")).status_code == 200
        refused = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 20_000})
        late = await http.post("/v1/completions", json=LONG | {"prompt": "a", "timeout": 0.2})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert (late.status_code, late.json()["error"]["type"]) == (408, "timeout_error")


async def test_answers_match_a_form_on_every_replica(cluster: Cluster) -> None:
    async with cluster.client() as http:
        body = {"max_tokens": 9, "structured_outputs": {"choice": ["yes"]}}
        answers = [await http.post("/v1/completions", json={**body, "prompt": f"{i} " * 40}) for i in range(6)]
    assert [answer.json()["choices"][0]["text"] for answer in answers] == ["yes"] * 6


async def test_a_conversation_stays_on_the_replica_that_has_it_cached(cluster: Cluster) -> None:
    async with cluster.client() as http:
        prompts = [make_prompt(160, seed=1000 + i) for i in range(16)]
        short = {"max_tokens": 16, "return_token_ids": True}
        for turn in range(3):
            answers = await asyncio.gather(
                *(http.post("/v1/completions", json=body | short) for body in bodies(prompts))
            )
            for answer, prompt in zip(answers, prompts, strict=True):
                cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert cached >= (0 if turn == 0 else len(prompt) - 48 - 16)  # all but the last turn's new tokens
                prompt += answer.json()["choices"][0]["token_ids"] + make_prompt(32, seed=turn)


async def test_clients_that_hang_up_free_their_blocks(cluster: Cluster) -> None:
    async with cluster.client() as http:
        prompts = [make_prompt(40, seed=2000 + i) for i in range(8)]
        await asyncio.gather(*(stream(http, leave_after=1 + i, prompt=p, **LONG) for i, p in enumerate(prompts)))
        waiting = asyncio.create_task(http.post("/v1/completions", json=LONG | {"prompt": ["a", "b"], "n": 2}))
        await asyncio.to_thread(cluster.until, lambda: cluster.metric("requests_running") == 4)
        waiting.cancel()
        await asyncio.wait({waiting})
        await asyncio.to_thread(check_idle, cluster)


async def test_a_stop_string_ends_one_of_several_sequences(cluster: Cluster) -> None:
    body = {"prompt": "stop", "n": 4, "seed": 1, "temperature": 1.5, "ignore_eos": True}
    async with cluster.client() as http:
        free = (await http.post("/v1/completions", json=body | {"max_tokens": 12})).json()["choices"]
        stop = free[0]["text"][2:4]
        ending = [stop in choice["text"] for choice in free]
        assert any(ending)
        assert not all(ending)
        request = asyncio.create_task(http.post("/v1/completions", json=body | {"max_tokens": 15_000, "stop": stop}))
        await asyncio.to_thread(cluster.until, lambda: 0 < cluster.metric("requests_running") < 4)
        request.cancel()
        await asyncio.wait({request})
        await asyncio.to_thread(check_idle, cluster)


def check_idle(cluster: Cluster) -> None:
    """Nothing is left behind: no sequence, no block."""
    cluster.until(lambda: all(report.stats.num_used_blocks == 0 for report in cluster.replicas().values()))
    names = ("requests_running", "requests_waiting", "kv_cache_usage_ratio")
    cluster.until(lambda: all(cluster.metric(name) == 0 for name in names))


async def test_a_killed_replica_takes_only_its_own_requests_with_it_and_comes_back(cluster: Cluster) -> None:
    prompts = [make_prompt(20 + i, seed=3000 + i) for i in range(64)]
    alone = expected(cluster, prompts, 1000)
    before, [first, second] = cluster.until_whole(), cluster.processes("Engine")
    started = asyncio.Semaphore(0)
    async with cluster.client() as http:
        running = [asyncio.create_task(stream(http, started, **body)) for body in bodies(prompts, 1000)]
        for _ in range(16):
            await started.acquire()
        first.kill()
        answers = await asyncio.gather(*running)
        lost = [answer for answer in answers if answer.error is not None]
        assert 0 < len(lost) < 64
        for answer, tokens in zip(answers, alone, strict=True):
            assert answer.done
            if answer.error is None:
                assert answer.token_ids == tokens
            else:
                assert answer.error["type"] == "service_unavailable_error"
                assert answer.token_ids == tokens[: len(answer.token_ids)]
        assert cluster.get("/health").status_code == 200  # the other one takes requests

        await asyncio.to_thread(cluster.until, lambda: len(cluster.replicas()) == 2)
        assert len(cluster.replicas().keys() & before) == 1
        second.kill()  # so that only the new one is there
        await asyncio.to_thread(cluster.until, lambda: not cluster.replicas().keys() & before)
        answers = await asyncio.gather(*(stream(http, **body) for body in bodies(prompts[:4], 1000)))
    assert [answer.token_ids for answer in answers] == alone[:4]
    await asyncio.to_thread(cluster.until_whole, before)


async def test_without_any_replica_the_api_says_so_until_one_is_back(cluster: Cluster) -> None:
    before = cluster.until_whole()
    prompt = make_prompt(30, seed=4000)
    started = asyncio.Semaphore(0)
    async with cluster.client() as http:
        running = [asyncio.create_task(stream(http, started, prompt=prompt, **LONG)) for _ in range(4)]
        for _ in running:
            await started.acquire()
        for process in cluster.processes("Engine"):
            [engine] = process.children()
            engine.kill()  # its replica ends with it
        answers = await asyncio.gather(*running)
        assert all(answer.done and answer.error is not None for answer in answers)
        await asyncio.to_thread(cluster.until, lambda: cluster.get("/health").status_code == 503)
        assert cluster.get("/health").json() == {"status": "restarting"}
        refused = await http.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        await asyncio.to_thread(cluster.until_whole, before)
        [answer] = await asyncio.gather(*(stream(http, **body) for body in bodies([prompt])))
    assert [answer.token_ids] == expected(cluster, [prompt])
    await asyncio.to_thread(check_idle, cluster)


async def test_a_killed_api_leaves_no_sequence_behind(cluster: Cluster) -> None:
    started = asyncio.Semaphore(0)
    async with cluster.client() as http:
        running = [asyncio.create_task(stream(http, started, prompt=[i], **LONG)) for i in range(4)]
        for _ in running:
            await started.acquire()
        [api] = cluster.processes("Api")
        api.kill()
        ends = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(end, httpx.TransportError) for end in ends)
    await asyncio.to_thread(cluster.until_whole)
    await asyncio.to_thread(check_idle, cluster)

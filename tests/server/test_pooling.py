"""Values of prompts, as every route of task heads has them computed; the engine is a fake."""

import asyncio
import dataclasses
import time

import pytest

from engine.protocol import PoolingParams, SequenceOutput
from server.admission import Admission
from tests.server.conftest import COMPLETIONS, check_error

EMBED, CLASSIFY = "/v1/embeddings", "/v1/classify"


def values(request):
    """Tell each prompt's order, and the lengths of all, by the values."""
    ids = request.prompt_token_ids
    return [len(ids), ids[-1]]


async def test_what_the_request_says_reaches_the_engine(serve_heads, ids_of):
    api = await serve_heads(values)
    said = {"pooling": "mean", "priority": 3, "timeout": 9, "truncate_prompt_tokens": 2, "cache_salt": "s"}
    await api.ask(EMBED, input=["abc", "d"], **said)
    first, second = api.engine.requests
    assert first.pooling == PoolingParams(task="embed", pooling="mean")
    assert (first.prompt_token_ids, second.prompt_token_ids) == (ids_of("ab"), ids_of("d"))
    scheduling = first.scheduling
    assert (scheduling.priority, bool(scheduling.cache_salt), scheduling.background) == (3, True, False)
    assert 0 < scheduling.deadline - time.monotonic() < 9


async def test_a_model_that_cannot_generate_says_so(serve_heads):
    api = await serve_heads(values)
    error = check_error(await api.http.post(COMPLETIONS, json={"prompt": "a"}), 400, code="task_not_supported")
    assert error["message"] == "This model cannot generate text; it can embed text and classify text."


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_a_full_queue_refuses_and_prompts_leave_it_when_they_start(serve_heads):
    api = await serve_heads(lambda _: None)
    engine, state = api.engine, dataclasses.replace(api.app.state.server, admission=Admission(2, 100))
    api.app.state.server = state
    waiting = asyncio.create_task(api.http.post(EMBED, json={"input": ["a", "b"]}))
    await until(lambda: len(engine.requests) == 2)
    check_error(await api.http.post(EMBED, json={"input": ["c", "d"]}), 429)
    engine.answer_all(values)
    assert (await waiting).status_code == 200
    assert state.admission.num_prompts == 0


async def test_many_texts_take_no_more_of_the_queue_than_two_batches(serve_heads):
    api = await serve_heads(lambda _: None)  # 4 sequences a batch
    admission = api.app.state.server.admission
    asking = asyncio.create_task(api.http.post(EMBED, json={"input": ["abc"] * 50, "timeout": 60, "normalize": False}))
    for num_sent in range(8, 51, 6):
        await until(lambda expected=num_sent: len(api.engine.requests) == expected)
        assert (admission.num_prompts, admission.num_tokens) == (8, 24)
        for request in api.engine.requests[num_sent - 8 : num_sent - 2]:
            api.engine.answer(request, values(request))
    await until(lambda: len(api.engine.requests) == 50 and admission.num_prompts < 8)
    api.engine.answer_all(values)
    answer = (await asking).json()
    assert [data["embedding"][0] for data in answer["data"]] == [3] * 50
    first, last = api.engine.requests[0].scheduling, api.engine.requests[-1].scheduling
    assert last.arrival_time > first.arrival_time
    assert last.deadline == first.deadline


async def test_what_comes_later_waits_as_long_as_it_must(serve_heads):
    api = await serve_heads(values, config={"queue_timeout": 1})
    await api.ask(EMBED, input=["a"] * 9)
    assert [request.scheduling.start_deadline is None for request in api.engine.requests] == [False] * 8 + [True]


async def test_a_client_that_leaves_ends_its_requests(serve_heads):
    api = await serve_heads(lambda _: None)
    arrived = iter([{"type": "http.request", "body": b'{"input": ["a", "b"]}', "more_body": False}])
    left, sent = asyncio.Event(), []

    async def receive():
        if (message := next(arrived, None)) is not None:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": EMBED, "raw_path": EMBED.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"test")], "client": ("127.0.0.1", 1), "scheme": "http"}
    scope |= {"server": ("test", 80), "root_path": "", "http_version": "1.1", "asgi": {"version": "3.0"}}
    running = asyncio.create_task(api.app(scope, receive, send))
    await until(lambda: len(api.engine.requests) == 2)
    left.set()
    await running
    assert sent[0]["status"] == 499
    assert sorted(api.engine.aborted) == sorted(request.request_id for request in api.engine.requests)


@pytest.mark.parametrize(("reason", "status"), [("error", 500), ("timeout", 408)])
async def test_an_end_without_values_is_an_error(serve_heads, reason, status):
    api = await serve_heads(lambda request: SequenceOutput(request.request_id, 0, [], reason, queue_time=0.0))
    check_error(await api.http.post(EMBED, json={"input": ["a"] * 20, "timeout": 1e-9}), status)
    assert len(api.engine.requests) <= 8
    assert api.app.state.server.admission.num_prompts == 0


async def test_requests_are_counted(serve_heads):
    api = await serve_heads(values)
    await api.ask(CLASSIFY, input=["abc", "d"])
    lines = (await api.http.get("/metrics")).text.splitlines()
    counted = {'prompt_tokens_total{model_name="tiny"} 4.0', 'e2e_request_latency_seconds_count{model_name="tiny"} 1.0'}
    counted |= {'sequences_finished_total{finished_reason="stop",model_name="tiny"} 2.0'}
    counted |= {'request_queue_time_seconds_count{model_name="tiny"} 2.0'}
    counted |= {'task_requests_total{model_name="tiny",task="classify"} 1.0'}
    counted |= {'request_generation_tokens_count{model_name="tiny"} 0.0'}
    assert counted <= {line.removeprefix("deepseek_serve_") for line in lines}


async def test_the_modalities_of_texts_reach_an_engine_that_knows_them(serve_heads):
    api = await serve_heads(values, info={"modalities": ("text", "code")})
    code = {"messages": [{"role": "user", "content": [{"type": "code", "text": "a"}]}]}
    for said in (
        {"input": ["a```b", "c"]},
        {"input": "ab", "modality": "code"},
        {"input": [1], "modality": "code"},
        code,
    ):
        await api.ask(EMBED, **said)
    await api.ask(CLASSIFY, input="``` x")
    check_error(await api.http.post(EMBED, json={"input": "a", "modality": "image"}), 400, param="modality")
    sent = [request.modalities for request in api.engine.requests]
    assert sent == [b"\0\0\0\0\1", b"", b"\1\1", b"\1", bytes(7) + b"\1", b"\0\0\0\1\1"]

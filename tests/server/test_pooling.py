"""Values of prompts over HTTP, as any route may ask for them; the engine is a fake."""

import asyncio
import contextlib
import dataclasses
import time

import httpx
import pytest
from fastapi import Request, Response

from engine.protocol import PoolingParams, SequenceOutput
from server.admission import Admission
from server.app import create_app
from server.config import ServerConfig
from server.heads.protocol import EmbeddingRequest
from server.heads.texts import Inputs
from server.http.json_body import JsonRoute
from server.pooling import pool, scores_of
from tests.server.conftest import COMPLETIONS, check_error
from tests.support.no_engine import PoolingEngine


class Body(EmbeddingRequest):
    """What the test's route takes."""

    task: str = "embed"


def values(request):
    """Tell each prompt's order, and the lengths of all, by the values."""
    ids = request.prompt_token_ids
    return [len(ids), ids[-1]]


@contextlib.asynccontextmanager
async def make_api(tokenizer, model, engine, **config):
    app = create_app(engine, tokenizer, "tiny", model, config=ServerConfig(data_dir="memory", **config))
    app.router.route_class = JsonRoute

    @app.post("/pool")
    async def answer(request: Request, body: Body):
        server = request.app.state.server
        pooling = PoolingParams(task=body.task, pooling=body.pooling or "last")
        pooled = await pool(request, Inputs(server, body), pooling)
        if pooled is None:
            return Response(status_code=499)
        vectors = [list(vector) for vector in pooled.vectors]
        return {"vectors": vectors, "prompt_tokens": pooled.num_prompt_tokens, "cached": pooled.num_cached_tokens}

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield app, http


@pytest.fixture
def serve_pool(tiny_tokenizer, tiny_llama):
    """serve_pool(engine, ...) -> a context manager of (app, client)."""
    return lambda engine, **config: make_api(tiny_tokenizer, tiny_llama, engine, **config)


async def test_texts_and_token_ids_are_answered_in_their_order(serve_pool, ids_of):
    async with serve_pool(PoolingEngine(values)) as (_, http):
        texts = await http.post("/pool", json={"input": ["abc", "z"], "model": "tiny"})
        ids = await http.post("/pool", json={"input": [[7, 8], [9]]})
    vectors = [[3, *ids_of("c")], [1, *ids_of("z")]]
    assert texts.json() == {"vectors": vectors, "prompt_tokens": 4, "cached": 0}
    assert ids.json() == {"vectors": [[2, 8], [1, 9]], "prompt_tokens": 3, "cached": 0}


async def test_what_the_request_says_reaches_the_engine(serve_pool, ids_of):
    engine = PoolingEngine(values)
    async with serve_pool(engine) as (_, http):
        said = {"pooling": "mean", "priority": 3, "timeout": 9, "truncate_prompt_tokens": 2, "cache_salt": "s"}
        assert (await http.post("/pool", json={"input": ["abc", "d"], **said})).status_code == 200
    first, second = engine.requests
    assert first.pooling == PoolingParams(task="embed", pooling="mean")
    assert (first.prompt_token_ids, second.prompt_token_ids) == (ids_of("ab"), ids_of("d"))
    scheduling = first.scheduling
    assert (scheduling.priority, bool(scheduling.cache_salt), scheduling.background) == (3, True, False)
    assert 0 < scheduling.deadline - time.monotonic() < 9


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"input": ["ok", ""]}, 400, {"param": "input"}),
        ({"input": [[]]}, 400, {"param": "input"}),
        ({"input": [[258]]}, 400, {"param": "input"}),
        ({"input": [[0] * 65]}, 400, {"param": "input", "code": "context_length_exceeded"}),
        ({"input": ["a" * 65]}, 400, {"param": "input", "code": "context_length_exceeded"}),
        ({"input": ["a"], "task": "value"}, 400, {"param": "model", "code": "task_not_supported"}),
        ({"input": ["a"], "task": "classify", "pooling": "mean"}, 400, {"param": "pooling"}),
        ({"input": ["a"], "task": "sing"}, 400, {}),
        ({"input": ["a"], "model": "other"}, 404, {"param": "model"}),
        ({"input": ["a"], "truncate_prompt_tokens": 0}, 400, {"param": "truncate_prompt_tokens"}),
        ({"input": ["a"], "temperature": 0}, 400, {"param": "temperature"}),
    ],
)
async def test_what_cannot_be_computed_is_refused(serve_pool, body, status, expected):
    engine = PoolingEngine(values)
    async with serve_pool(engine) as (app, http):
        check_error(await http.post("/pool", json=body), status, **expected)
        assert app.state.server.admission.num_prompts == 0
    assert engine.requests == []


async def test_a_model_that_cannot_generate_says_so(serve_pool):
    async with serve_pool(PoolingEngine(values)) as (_, http):
        error = check_error(await http.post(COMPLETIONS, json={"prompt": "a"}), 400, code="task_not_supported")
    assert error["message"] == "This model cannot generate text; it can embed text and classify text."


async def test_a_full_queue_refuses_and_prompts_leave_it_when_they_start(serve_pool):
    engine = PoolingEngine(lambda _: None)
    async with serve_pool(engine) as (app, http):
        state = dataclasses.replace(app.state.server, admission=Admission(2, 100))
        app.state.server = state
        waiting = asyncio.create_task(http.post("/pool", json={"input": ["a", "b"]}))
        while len(engine.requests) < 2:
            await asyncio.sleep(0)
        check_error(await http.post("/pool", json={"input": ["c", "d"]}), 429)
        for request in list(engine.requests):
            engine._values = values
            engine._send(request)
        assert (await waiting).status_code == 200
        assert state.admission.num_prompts == 0


async def test_a_client_that_leaves_ends_its_requests(serve_pool):
    engine = PoolingEngine(lambda _: None)
    async with serve_pool(engine) as (app, _):
        arrived = iter([{"type": "http.request", "body": b'{"input": ["a", "b"]}', "more_body": False}])
        left, sent = asyncio.Event(), []

        async def receive():
            if (message := next(arrived, None)) is not None:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/pool", "raw_path": b"/pool", "query_string": b""}
        scope |= {"headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "scheme": "http"}
        scope |= {"server": ("test", 80), "root_path": "", "http_version": "1.1", "asgi": {"version": "3.0"}}
        running = asyncio.create_task(app(scope, receive, send))
        while len(engine.requests) < 2:
            await asyncio.sleep(0)
        left.set()
        await running
        assert sent[0]["status"] == 499
    assert sorted(engine.aborted) == sorted(request.request_id for request in engine.requests)


@pytest.mark.parametrize(("reason", "status"), [("error", 500), ("timeout", 408)])
async def test_an_end_without_values_is_an_error(serve_pool, reason, status):
    engine = PoolingEngine(lambda request: SequenceOutput(request.request_id, 0, [], reason, queue_time=0.0))
    async with serve_pool(engine) as (_, http):
        check_error(await http.post("/pool", json={"input": ["a"], "timeout": 1e-9}), status)


async def test_requests_are_counted(serve_pool):
    async with serve_pool(PoolingEngine(values)) as (_, http):
        assert (await http.post("/pool", json={"input": ["abc", "d"]})).status_code == 200
        lines = (await http.get("/metrics")).text.splitlines()
    counted = {'prompt_tokens_total{model_name="tiny"} 4.0', 'e2e_request_latency_seconds_count{model_name="tiny"} 1.0'}
    counted |= {'sequences_finished_total{finished_reason="stop",model_name="tiny"} 2.0'}
    counted |= {'request_queue_time_seconds_count{model_name="tiny"} 2.0'}
    assert counted <= {line.removeprefix("deepseek_serve_") for line in lines}


def test_scores():
    assert scores_of([1000.0, 1000.0], "softmax") == [0.5, 0.5]
    assert scores_of([0.0, 1000.0, -1000.0], "sigmoid") == [0.5, 1.0, 0.0]
    assert sum(scores_of([1.0, 2.0, 3.0], "softmax")) == pytest.approx(1)
    assert scores_of([1.5], "none") == [1.5]

"""The API over ASGI, with a tiny engine in the same process and without a socket; and the ways to ask it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer as HFTokenizer

from engine.build import load_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading.resolve import ModelSource
from engine.step import SampledToken, StepResult
from server.app import create_app
from server.config import ServerConfig
from server.in_process_engine import InProcessEngine
from server.text.tokenizer import Tokenizer
from tests.support.no_engine import POOLING_INFO, PoolingEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from fastapi import FastAPI

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hi"},
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
}
EOS_ID = 257
_DEADLINE = 20.0  # seconds; far more than anything here takes


@dataclass
class Api:
    """A running API and the ways in which tests ask it."""

    app: FastAPI
    http: httpx.AsyncClient
    client: InProcessEngine
    engine: Engine
    tokenizer: Tokenizer

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=BODIES[path] | body)

    async def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """An answer in one piece; the request must succeed."""
        response = await self.post(path, **body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def complete(self, prompt: Any, **body: Any) -> dict[str, Any]:
        """The answer to a completion, which must succeed."""
        return await self.ask(COMPLETIONS, prompt=prompt, **body)

    async def choice(self, prompt: Any, **body: Any) -> dict[str, Any]:
        """The one choice of a completion, which must succeed."""
        [choice] = (await self.complete(prompt, **body))["choices"]
        return choice  # type: ignore[no-any-return]

    async def chat(self, content: Any, **body: Any) -> dict[str, Any]:
        """The answer to one user message, which must succeed."""
        return await self.ask(CHAT, messages=[{"role": "user", "content": content}], **body)

    async def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream without `[DONE]`; the request must succeed."""
        response = await self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_events(response.text)

    async def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics."""
        text = (await self.http.get("/metrics")).text
        return next(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"deepseek_serve_{name}" and labels.items() <= sample.labels.items()
        )

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait for a condition, up to a deadline."""
        async with asyncio.timeout(_DEADLINE):
            while not await condition():
                await asyncio.sleep(0.002)

    async def until_idle(self) -> None:
        """Wait until the engine has nothing left; then nothing may be left behind."""

        async def idle() -> bool:
            return not self.engine.has_work and await self.metric("kv_cache_usage_ratio") == 0

        await self.until(idle)
        self.engine.batcher.check_idle()


@dataclass
class HeadsApi:
    """An API of task heads."""

    app: FastAPI
    http: httpx.AsyncClient
    engine: PoolingEngine

    async def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """An answer; the request must succeed."""
        response = await self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts that the engine got."""
        return [request.prompt_token_ids for request in self.engine.requests]


def parse_events(text: str) -> list[dict[str, Any]]:
    """The JSON of a stream's `data:` lines, which must end with `[DONE]`."""
    *events, end = text.split("\n\n")
    assert end == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def check_usage(usage: dict[str, Any], num_prompt_tokens: int, num_output_tokens: int) -> None:
    """Assert that a usage object has these counts; how much was cached depends on what the engine saw before."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    usage = {name: value for name, value in usage.items() if name != "completion_tokens_details"}  # chat's alone
    assert 0 <= cached < num_prompt_tokens
    assert usage == {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def text_of(*answers: dict[str, Any], choice: int = 0) -> str:
    """One choice's text, from an answer in one piece or from a stream's chunks, of either API."""
    choices = [c for answer in answers for c in answer["choices"] if c["index"] == choice]
    contents = [c.get("message", c.get("delta", {"content": c.get("text", "")})) for c in choices]
    return "".join(content.get("content", "") for content in contents)


def check_error(response: httpx.Response, status: int, **expected: Any) -> dict[str, Any]:
    """OpenAI's error shape, with these values of `param`, `code` or `type`; the error."""
    assert response.status_code == status, (response.status_code, response.text)
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)
    assert {name: error[name] for name in expected} == expected
    return error


@pytest.fixture(scope="session")
def tiny_engine(tiny_llama: Path) -> Engine:
    config = EngineConfig(
        model=str(tiny_llama), dtype="float32", device="cpu", threads=1, num_kv_blocks=256, max_batch_size=16
    )
    return load_engine(config)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama: Path) -> Tokenizer:
    return Tokenizer.load(ModelSource(tiny_llama, "tiny"))


@contextlib.asynccontextmanager
async def running(client: InProcessEngine) -> AsyncIterator[None]:
    """The engine takes requests, until the `async with` statement ends."""
    task = asyncio.create_task(client.run())
    await asyncio.sleep(0)  # its first stretch sets `info`
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest_asyncio.fixture
async def serve(tiny_engine: Engine, tiny_tokenizer: Tokenizer, tiny_llama: Path) -> AsyncIterator[Callable[..., Any]]:
    """await serve(...) -> an API with other parts than `api` has; it runs until the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            tokenizer: Tokenizer = tiny_tokenizer, *, engine: Engine = tiny_engine, run: bool = True, **parts: Any
        ) -> Api:
            client = InProcessEngine(engine)
            parts.setdefault("config", ServerConfig(data_dir="memory"))
            app = create_app(client, tokenizer, "tiny", tiny_llama, **parts)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            if run:
                await stack.enter_async_context(running(client))
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))
            return Api(app, http, client, engine, tokenizer)

        yield start


@pytest_asyncio.fixture
async def api(serve: Callable[..., Any]) -> AsyncIterator[Api]:
    """A running API; when the test ends, the engine must be idle or become idle."""
    api: Api = await serve()
    yield api
    await api.until_idle()


@pytest.fixture(params=[COMPLETIONS, CHAT])
def path(request):
    """Each API that generates text."""
    return request.param


@pytest.fixture(scope="session")
def reference_tokenizer(tiny_llama):
    """The `tokenizers` package's own reading of the tiny model's tokenizer; one token is one byte."""
    return HFTokenizer.from_file(str(tiny_llama / "tokenizer.json"))


@pytest.fixture(scope="session")
def ids_of(reference_tokenizer):
    """ids_of(text) -> token ids."""
    return lambda text: reference_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture
def letters(ids_of):
    """letters(text) -> parameters that make output of the bytes of `text` only."""
    return lambda text: {"logit_bias": {str(i): 100 for i in ids_of(text)}, "ignore_eos": True, "max_tokens": 40}


@pytest.fixture
def say(tiny_engine, monkeypatch):
    """say(token_ids) has the model say these, whatever it reads; None stands for logits that are not finite."""
    compute = tiny_engine.executor.execute

    def replace(token_ids):
        script = iter(token_ids)

        def run(plan):
            result = compute(plan)
            return StepResult([SampledToken(next(script)) for _ in result.sampled], result.prompt_logprobs)

        monkeypatch.setattr(tiny_engine.executor, "execute", run)

    return replace


@pytest.fixture
def speak(say, ids_of):
    """speak(texts...) has the model answer one request after another with these."""
    return lambda *texts: say([token for text in texts for token in [*ids_of(text), EOS_ID]])


@pytest.fixture
def prompts(api, monkeypatch):
    """The texts that were tokenised so far."""
    texts, encode = [], api.tokenizer.encode
    monkeypatch.setattr(api.tokenizer, "encode", lambda text, **options: texts.append(text) or encode(text, **options))
    return texts


@pytest_asyncio.fixture
async def serve_heads(tiny_tokenizer: Any, tiny_llama: Any) -> AsyncIterator[Callable[..., Any]]:
    """await serve_heads(values, info={...}, config={...}) -> an API whose engine gives each request these values."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            values: Any = lambda request: [1.0, 0.0],
            info: dict[str, Any] | None = None,
            config: dict[str, Any] | None = None,
        ) -> HeadsApi:
            engine = PoolingEngine(values, msgspec.structs.replace(POOLING_INFO, **info or {}))
            settings = ServerConfig(data_dir="memory", **config or {})
            app = create_app(engine, tiny_tokenizer, "tiny", tiny_llama, config=settings)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))
            return HeadsApi(app, http, engine)

        yield start


@pytest.fixture
def scripted(ids_of: Callable[[str], list[int]]) -> Callable[..., Any]:
    """scripted({text: values}) -> the values of requests with these texts, for `serve_heads`."""

    def make(script: dict[str, list[float]]) -> Callable[[Any], list[float]]:
        by_prompt = {tuple(ids_of(text)): values for text, values in script.items()}
        return lambda request: by_prompt[tuple(request.prompt_token_ids)]

    return make

"""The API over ASGI: routes, text and a tiny engine in one process, without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading.resolve import ModelSource
from server.app import create_app
from server.engine_client import InProcessEngine
from server.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from fastapi import FastAPI

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
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
        return await self.http.post(path, json=body)

    async def complete(self, prompt: Any, **body: Any) -> dict[str, Any]:
        """A completion that must succeed."""
        return _good(await self.post(COMPLETIONS, prompt=prompt, **body))

    async def chat(self, content: Any, **body: Any) -> dict[str, Any]:
        """A chat completion on one user message that must succeed."""
        return _good(await self.post(CHAT, messages=[{"role": "user", "content": content}], **body))

    async def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream that must succeed, `[DONE]` checked and left out."""
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


def _good(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


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
    assert 0 <= cached < num_prompt_tokens
    assert usage == {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def text_of(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    """A stream's joined text, of either route."""
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice]
    return "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in choices)


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
    return Engine.load(config)


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
async def api(tiny_engine: Engine, tiny_tokenizer: Tokenizer, tiny_llama: Path) -> AsyncIterator[Api]:
    """A running API; when the test ends, the engine must be idle or become so."""
    client = InProcessEngine(tiny_engine)
    app = create_app(client, tiny_tokenizer, "tiny", tiny_llama)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with running(client), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        api = Api(app, http, client, tiny_engine, tiny_tokenizer)
        yield api
        await api.until_idle()

"""The API with a fake engine that gives each text the values that a test says."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from server.app import create_app
from server.config import ServerConfig
from tests.support.no_engine import POOLING_INFO, PoolingEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi import FastAPI


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

"""An API whose batches run, and the ways to give it some."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from server.config import ServerConfig
from tests.server.conftest import Api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

COMPLETIONS = "/v1/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(number: int, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    """A request of a batch."""
    body = {"prompt": f"line {number}", "max_tokens": 3, "temperature": 0, "ignore_eos": True} | body
    return {"custom_id": f"id-{number}", "method": "POST", "url": url, "body": body}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines)


class BatchApi:
    """The batch routes of a running API."""

    def __init__(self, api: Api) -> None:
        self.api, self.http = api, api.http
        self.runner = api.app.state.batches
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self.runner.run())

    async def stop(self) -> None:
        self.runner.stop()
        if self._running is not None:
            await self._running

    def cancel(self) -> None:
        """Cancel the runner's task, as the end of the server does."""
        assert self._running is not None
        self._running.cancel()

    async def upload(self, content: bytes, purpose: str = "batch", **fields: Any) -> dict[str, Any]:
        files = {"file": ("lines.jsonl", content)}
        response = await self.http.post("/v1/files", data={"purpose": purpose, **fields}, files=files)
        assert response.status_code == 200, response.text
        return response.json()

    async def create(self, lines: list[Any], endpoint: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
        file = await self.upload(jsonl(lines))
        body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"} | body
        response = await self.http.post("/v1/batches", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def get(self, batch: dict[str, Any]) -> dict[str, Any]:
        return (await self.http.get(f"/v1/batches/{batch['id']}")).json()

    async def end_of(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch once it has ended."""
        while (found := await self.get(batch))["status"] not in ENDED:
            await asyncio.sleep(0.01)
        return found

    async def run(self, lines: list[Any], **body: Any) -> dict[str, Any]:
        async with asyncio.timeout(20):
            return await self.end_of(await self.create(lines, **body))

    async def results(self, batch: dict[str, Any], which: str = "output") -> list[dict[str, Any]]:
        """The lines of a batch's output or error file."""
        file_id = batch[f"{which}_file_id"]
        if file_id is None:
            return []
        content = await self.http.get(f"/v1/files/{file_id}/content")
        return [json.loads(line) for line in content.content.splitlines()]


@pytest_asyncio.fixture
async def start(serve: Callable[..., Any], tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """await start(...) -> a BatchApi whose server has these settings, and this folder unless told otherwise."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*, keys: Any = None, run: bool = True, **config: Any) -> BatchApi:
            api = await serve(config=ServerConfig(**{"data_dir": str(tmp_path / "state")} | config), keys=keys)
            batches = BatchApi(api)
            stack.push_async_callback(api.app.state.server.storage.close)
            stack.push_async_callback(batches.stop)
            if run:
                batches.start()
            return batches

        yield make


@pytest_asyncio.fixture
async def batches(start: Callable[..., Any]) -> BatchApi:
    return await start()

"""GET /debug/state: for administrators alone, bounded, and also where the engine says nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from server import engine_client
from server.config import ServerConfig
from tests.server.conftest import COMPLETIONS, Api, check_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ADMIN_PORT = 9101
TEXT = "my diary of Tuesday"


@pytest_asyncio.fixture
async def api(serve: Any) -> AsyncIterator[Api]:
    api = await serve(config=ServerConfig(data_dir="memory", admin_port=ADMIN_PORT))
    yield api
    await api.until(lambda: _is_idle(api))
    api.engine.batcher.check_idle()


@pytest_asyncio.fixture
async def admin(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://localhost:{ADMIN_PORT}"
    async with httpx.AsyncClient(transport=api.http._transport, base_url=url) as admin:
        yield admin


@contextlib.asynccontextmanager
async def busy(api: Api) -> AsyncIterator[None]:
    """More choices than the batch has seats, of one request."""
    body = {"prompt": TEXT, "max_tokens": 480, "ignore_eos": True, "n": 20}
    asking = asyncio.create_task(api.http.post(COMPLETIONS, json=body, headers={"X-Request-ID": "mine-1"}))
    await api.until(lambda: _runs(api, 16))
    try:
        yield
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


async def _runs(api: Api, number: int) -> bool:
    stats = api.client.stats
    return stats is not None and stats.num_running >= number


async def _is_idle(api: Api) -> bool:
    return not api.engine.has_work


async def test_it_says_who_runs_and_who_waits(api: Api, admin: httpx.AsyncClient) -> None:
    async with busy(api):
        response = await admin.get("/debug/state", headers={"Accept": "application/json"})
        text = (await admin.get("/debug/state?limit=3")).text
    state = response.json()
    batcher = state["engine"]["batcher"]
    assert (batcher["num_running"], batcher["num_waiting"], batcher["max_batch_size"]) == (16, 4, 16)
    assert {one["why"] for one in batcher["waiting"]} == {"all 16 seats of the batch are taken"}
    assert {one["request_id"].rpartition(".")[0] for one in batcher["running"]} == {"mine-1"}
    assert state["server"]["status"] == "ready"
    assert "16 run, 4 wait" in text
    assert state["engine"]["limits"]["memory"]["kv_cache"] > 0
    assert "memory   weights 0.00 GiB, kv cache 0.00 GiB, other " in text
    assert text.count("mine-1.") == 6
    assert "seats of the batch are taken" in text
    assert TEXT not in text + response.text


async def test_a_name_cannot_steer_the_terminal_that_shows_it(
    api: Api, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.client, "last_end", "\x1b[31m\nevil")
    text = (await admin.get("/debug/state")).text
    assert r"\x1b[31m\nevil" in text
    assert text.replace("\n", "").isprintable()


async def test_it_is_for_administrators(api: Api, serve: Any, admin: httpx.AsyncClient) -> None:
    check_error(await api.http.get("/debug/state"), 404)
    assert (await admin.get("/debug/state")).status_code == 200
    check_error(await admin.get("/debug/state?limit=1001"), 400)
    check_error(await (await serve()).http.get("/debug/state"), 404)


async def test_an_engine_that_does_not_answer_is_said_so(
    api: Api, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_client, "_INSPECTION_TIMEOUT", 0.01)
    monkeypatch.setattr(api.client, "_send", lambda _: None)
    answers = await asyncio.gather(*(admin.get("/debug/state") for _ in range(10)))
    assert all("no answer in" in answer.text for answer in answers)
    assert api.client._inspections == {}
    monkeypatch.setattr(api.client, "info", None)
    assert "it is ready" in (await admin.get("/debug/state")).text  # the word for its state, which has no engine here

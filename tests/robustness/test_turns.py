"""No body holds the event loop: the worst of `make attack`'s, four at once, to an engine that answers at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from engine.loading.resolve import ModelSource
from server.app import create_app
from server.config import ServerConfig
from server.text.tokenizer import Tokenizer
from tests.attack.bodies import BODIES
from tests.support.answering import AnsweringEngine
from tests.support.turns import watched

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI

_MOST = 0.05  # seconds in which the event loop may compute without a pause
_CONTEXT, _VOCABULARY = 8192, 258
_WORST = [  # before large requests had a thread of their own, the loop computed from 0.05 to 1 s on each
    *("keys within the limit", "keys of a message", "text parts", "text parts within the limit", "blocks"),
    *("messages, as many as may be", "count messages", "items that are cut", "a long block and many", "detokenise"),
    *("bad words in a small body", "tools of 3 MB", "numbers of many digits", "logprobs of a prompt"),
]


@pytest.fixture(scope="module")
def app(tiny_llama: Path) -> FastAPI:
    tokenizer = Tokenizer.load(ModelSource(tiny_llama, "tiny"))
    tokenizer.measure()
    engine, config = AnsweringEngine(_CONTEXT, _VOCABULARY), ServerConfig(data_dir="memory")
    app = create_app(engine, tokenizer, "tiny", tiny_llama, config=config)
    app.state.server.storage.prepare()
    return app


@pytest.mark.parametrize("name", _WORST)
async def test_no_body_holds_the_event_loop(app: FastAPI, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, body = BODIES[name]()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        with watched(monkeypatch) as turns:
            answers = await asyncio.gather(*[http.post(path, content=body) for _ in range(4)])
    assert {answer.status_code for answer in answers} <= {200, 400, 429}
    assert turns.longest < _MOST, turns.what

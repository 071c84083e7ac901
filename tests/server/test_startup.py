"""How far a start is, and what becomes of one that hangs."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import EngineUnavailableError
from server.engine_client import EngineState
from server.engine_process import EngineProcess
from server.startup import Startup

FAKE_ENGINE = """
import sys, time, zmq
from engine.engine_info import EngineInfo
from engine.protocol import Loading, encode
socket = zmq.Context.instance().socket(zmq.PAIR)
socket.connect(sys.argv[1])
if sys.argv[2] == "ready once":
    socket.send(encode(EngineInfo(9, 9, 9, 9, "cpu", "float32", 1)))
    socket.recv()
    sys.exit(7)
for share in range(10):
    socket.send(encode(Loading("reading", share / 10)))
    time.sleep(0.1)
time.sleep(60)
"""


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """pretend(word, ...): the engine's processes are fakes, one after the other."""
    start = asyncio.create_subprocess_exec

    def pretend(*words: str) -> None:
        left = list(words)

        async def fake(*command: str, **options: Any) -> Any:
            word = left.pop(0) if len(left) > 1 else left[0]
            return await start(sys.executable, "-c", FAKE_ENGINE, command[4], word, **options)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", fake)

    return pretend


def test_a_start_says_its_phase_its_share_and_its_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.startup")
    now = 10.0
    monkeypatch.setattr("server.startup.time.monotonic", lambda: now)
    startup = Startup(5.0)
    startup.tell("downloading")
    now = 11.0
    for share in (0.0, 0.25, 0.5):
        startup.tell("reading", share)
    now = 14.0
    assert startup.report() == {"phase": "reading", "share": 0.5, "phase_seconds": 3.0, "seconds": 9.0}
    startup.finish()
    now = 20.0
    assert startup.report() == {"phase": "ready", "share": 1.0, "phase_seconds": 6.0, "seconds": 9.0}
    assert [record.getMessage() for record in caplog.records] == ["start: downloading", "start: reading"]
    startup.restart()
    assert startup.seconds == 0


async def test_a_load_that_hangs_is_ended_and_one_that_goes_on_is_not(pretend: Any) -> None:
    pretend("hang")
    client = EngineProcess(EngineConfig(), "warning", timeout=0.8, startup_timeout=0.7)
    running = asyncio.create_task(client.run())
    async with asyncio.timeout(30):
        while client.startup.share != 0.9:  # for longer than the timeout it went on
            assert not running.done()
            await asyncio.sleep(0.01)
        with pytest.raises(EngineUnavailableError, match=r"for 0.7 s \(--startup-timeout\) while reading"):
            await running


async def test_a_hang_while_the_engine_is_started_again_is_tried_again(
    pretend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pretend("ready once", "hang")
    client = EngineProcess(EngineConfig(), "warning", timeout=0.8, startup_timeout=0.9)
    running = asyncio.create_task(client.run())
    async with asyncio.timeout(30):
        await client.started.wait()
        while client.num_restarts < 2:
            await asyncio.sleep(0.01)
    assert client.state is EngineState.RESTARTING
    assert client.problem is not None
    assert "(--startup-timeout) while " in client.problem
    assert client.startup.phase != "ready"
    assert "(--startup-timeout) while " in caplog.text
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_startupz_says_how_the_start_went(api: Any) -> None:
    response = await api.http.get("/startupz")
    answer = response.json()
    assert (response.status_code, answer["status"], answer["phase"], answer["share"]) == (200, "ready", "ready", 1.0)
    assert answer["seconds"] >= 0


async def test_startupz_fails_while_the_model_is_being_loaded(serve: Any) -> None:
    api = await serve(run=False)
    api.client.startup.tell("reading and packing weights", 0.421234)
    response = await api.http.get("/startupz")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    answer = response.json()
    assert (answer["status"], answer["phase"]) == ("starting", "reading and packing weights")
    assert answer["share"] == 0.421

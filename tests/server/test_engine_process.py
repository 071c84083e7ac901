"""No stream begins without an engine; what a fast engine sends is bounded, and leaves others their turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.config import EngineConfig
from engine.errors import EngineUnavailableError
from engine.process import ZmqTransport
from engine.protocol import MAX_UNREAD, EngineStats, StepOutput
from server import engine_process
from server.engine_process import EngineProcess, _socket_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_MESSAGES = 20_000  # far more than what sockets hold


async def test_an_engine_that_is_not_there_refuses_to_start_requests(serve):
    api = await serve(run=False)
    with pytest.raises(EngineUnavailableError):
        api.client.submit([])


class Flood:
    """An engine that sends without end, and the server's end of the line; `num_sent` says how far it is."""

    def __init__(self, folder: Path) -> None:
        self._endpoint = f"ipc://{folder}/engine"
        self.client = EngineProcess(EngineConfig(model="none"), "error")
        self.socket = self.client._listen(self._endpoint)
        self.num_sent, self._is_over = 0, threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        transport = ZmqTransport(self._endpoint)
        for number in range(_MESSAGES):
            transport.send(StepOutput([], EngineStats(number, 0, 0, 8)))
            self.num_sent += 1
        self._is_over.wait()
        transport.close(linger=0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Flood]:
        self._thread.start()
        try:
            yield self
        finally:
            receiving = asyncio.create_task(self.client._receive(self.socket))
            await until(lambda: self.num_received == _MESSAGES)
            receiving.cancel()
            self._is_over.set()
            await asyncio.to_thread(self._thread.join)
            self.socket.close(linger=0)
            self.client._context.destroy(linger=0)

    @property
    def num_received(self) -> int:
        return 0 if self.client.stats is None else self.client.stats.num_running + 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def test_an_engine_waits_for_a_server_that_reads_nothing(tmp_path: Path) -> None:
    async with Flood(tmp_path).running() as flood:
        before = -1
        while flood.num_sent > before:  # until it waits
            before = flood.num_sent
            await asyncio.sleep(0.2)
        assert MAX_UNREAD < flood.num_sent < _MESSAGES / 2


async def test_others_have_their_turns_while_messages_flood_in(tmp_path: Path) -> None:
    async with Flood(tmp_path).running() as flood:
        receiving = asyncio.create_task(flood.client._receive(flood.socket))
        num_turns = 0
        while flood.num_received < _MESSAGES:
            await asyncio.sleep(0)
            num_turns += 1
        receiving.cancel()
        assert num_turns > 20


@pytest.mark.parametrize("name", ["short", "long" * 40])
async def test_a_socket_can_be_made_however_long_tmpdir_is(tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with _socket_folder() as folder:
        assert os.stat(folder).st_mode & 0o777 == 0o700
        client = EngineProcess(EngineConfig(model="none"), "error")
        client._listen(f"ipc://{folder}/engine").close(linger=0)
        client._context.destroy(linger=0)
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (1, "status 1"),
        (None, "status None"),
        (-signal.SIGKILL, "status -9 (SIGKILL: somebody or the system killed it; perhaps memory ran out)"),
        (-signal.SIGBUS, "(SIGBUS: a file of the model became shorter while it was read, or its disk failed)"),
        (-signal.SIGSEGV, "status -11 (SIGSEGV)"),
        (-99, "status -99"),
    ],
)
def test_how_an_engine_ended_is_said_in_words(status: int | None, text: str) -> None:
    assert engine_process._described(status).endswith(text)

"""The engine in a process of its own (engine.process), which is watched, and started again when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio

from engine.engine_info import EngineInfo
from engine.errors import EngineUnavailableError, ModelError
from engine.loading.phases import PAUSING
from engine.protocol import (
    MAX_UNREAD,
    EngineFailed,
    EngineStats,
    Loading,
    Ping,
    Shutdown,
    StepOutput,
    ToEngine,
    decode_from_engine,
    encode,
)
from engine.snapshot import EngineSnapshot
from server.engine_client import EngineClient, EngineState

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.logs import LogFormat

logger = logging.getLogger(__name__)

_HEALTHY_AFTER = 60.0  # seconds after which an engine counts as healthy: the delays begin again
_RESTART_DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before each start, of starts in a row that fail
_FAILED_TO_START = 2  # the exit status of an engine whose settings or model are at fault
_TURN = 0.002  # seconds of messages that wait, until others run in between
_STOP_TIMEOUT = 1.0  # seconds that the engine may take to end by itself
_SIGNALS = {  # what ends an engine from outside, in words
    signal.SIGBUS: "a file of the model became shorter while it was read, or its disk failed",
    signal.SIGKILL: "somebody or the system killed it; perhaps memory ran out",
}
_SOCKET_FOLDER = "deepseek-serve-"


class EngineProcess(EngineClient):
    """The engine in a child process. If it dies or hangs, running requests fail, and it is started again."""

    def __init__(
        self,
        config: EngineConfig,
        log_level: str,
        timeout: float = 50.0,
        startup_timeout: float = 300.0,
        log_format: LogFormat = "text",
        name: str = "engine",
    ) -> None:
        """`timeout` is how many seconds the engine may give no sign of life once it is ready, the other until then."""
        super().__init__(name)
        self._timeout, self._startup_timeout, self._heard = timeout, startup_timeout, asyncio.Event()
        self._why_killed: str | None = None  # the engine that ended last, if it was killed here
        self._was_ready = False  # the engine that ended last
        settings = {"name": name, "engine": config.model_dump(), "log_level": log_level, "log_format": log_format}
        self._settings = json.dumps(settings, default=str)  # a model may be a Path
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None

    def _send(self, message: ToEngine) -> None:
        if self._socket is not None:
            # Without a high-water mark it never has to wait.
            sent: asyncio.Future[Any] = self._socket.send(encode(message), flags=zmq.NOBLOCK)  # type: ignore[assignment]
            if sent.done():  # with an error where the engine has just died, which ends all requests in a moment
                sent.exception()

    async def run(self) -> None:
        try:
            status = await self._run_once()
            if self.state is EngineState.STARTING:
                how = self._why_killed or _described(status)
                raise EngineUnavailableError(f"the {self.name} ended before it was ready: {how}")
            num_deaths = 0  # in a row
            while True:
                delay = _RESTART_DELAYS[min(num_deaths, len(_RESTART_DELAYS) - 1)]
                self.last_end = self._why_killed or _described(status)
                logger.error("the %s died with %s; starting it again in %g s", self.name, _described(status), delay)
                self.startup.restart()
                if delay:
                    self.startup.tell(PAUSING)
                await asyncio.sleep(delay)
                started = time.monotonic()
                self.num_restarts += 1
                try:
                    status = await self._run_once()
                except ModelError as error:  # it may pass: a folder being replaced, memory that others hold
                    logger.error("the %s cannot start again: %s", self.name, error)
                    status = _FAILED_TO_START
                if time.monotonic() - started > _HEALTHY_AFTER:
                    num_deaths = 0
                else:  # one that can be loaded is soon there again, whatever ends it
                    num_deaths = 1 if self._was_ready else num_deaths + 1
        finally:
            self.state = EngineState.STOPPED
            self._context.destroy(linger=0)

    async def _run_once(self) -> int | None:
        """Start the engine and serve with it until it ends; its exit status."""
        with _socket_folder() as folder:
            endpoint = f"ipc://{folder}/engine"
            socket = self._listen(endpoint)
            self._was_ready, self._why_killed = False, None
            # -P: the working directory must not shadow our packages. The pipe's end tells the engine that we are gone.
            command = [sys.executable, "-P", "-m", "engine.process", endpoint, self._settings]
            # A session of its own: ctrl-C and signals to the group are for us, and we say when it is to stop.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
            self.engine_pid = process.pid
            receiving = asyncio.create_task(self._receive(socket))
            exited = asyncio.create_task(process.wait())
            watching = asyncio.create_task(self._watch(process))
            try:
                await asyncio.wait({receiving, exited}, return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():  # what it sent before it ended is still in the socket
                    await asyncio.wait({receiving}, timeout=0.2)
                if receiving.done():
                    receiving.result()
                return process.returncode
            finally:
                if self.info is not None:
                    self.stats = EngineStats(0, 0, 0, self.info.num_blocks)
                listens = self._socket is not None
                self.info, self._socket, self.engine_pid = None, None, None
                self.state = EngineState.RESTARTING if self.state is EngineState.READY else self.state
                self.fail_all(f"The {self.name} stopped while it was computing this request. Please try again.")
                receiving.cancel()
                watching.cancel()
                await self._end(process, exited, socket, listens=listens)

    def _listen(self, endpoint: str) -> zmq.asyncio.Socket:
        """Return our end of the line. We never wait for an engine; it waits where we are behind with reading."""
        socket = self._context.socket(zmq.PAIR)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, MAX_UNREAD)
        socket.bind(endpoint)
        return socket

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        turn_ends = 0.0
        while True:
            received: asyncio.Future[bytes] = socket.recv()  # type: ignore[assignment]
            if not received.done():
                await received
                turn_ends = time.monotonic() + _TURN
            elif time.monotonic() > turn_ends:  # awaiting what is there already would let nobody else run
                await asyncio.sleep(0)
                turn_ends = time.monotonic() + _TURN
            message = decode_from_engine(received.result())
            self._heard.set()
            self.heard_at = time.monotonic()
            match message:
                case EngineSnapshot() as snapshot:
                    self._inspected(snapshot)
                case StepOutput() as step:
                    self._dispatch(step)
                case EngineInfo() as info:
                    self._socket, self._was_ready = socket, True
                    self._ready(info)
                case Loading() as loading:
                    self.startup.tell(loading.phase, loading.share)
                case EngineFailed() as failed:
                    raise ModelError(failed.message if self.name == "engine" else f"the {self.name}: {failed.message}")

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill an engine that hangs. It answers between steps, so a step longer than the timeout counts as a hang."""
        while True:
            self._heard.clear()
            self._send(Ping())
            limit, flag = self._timeout, "--engine-timeout"
            if self.info is None:  # it tells how far loading is
                limit, flag = self._startup_timeout, "--startup-timeout"
            try:
                async with asyncio.timeout(limit):
                    await self._heard.wait()
            except TimeoutError:
                where = f" while {self.startup.phase}" if self.info is None else ""
                self._why_killed = f"no sign of life for {limit:g} s ({flag}){where}"
                logger.error("killing the %s: %s", self.name, self._why_killed)
                process.kill()
                return
            await asyncio.sleep(self._timeout / 8)

    async def _end(
        self,
        process: asyncio.subprocess.Process,
        exited: asyncio.Task[int],
        socket: zmq.asyncio.Socket,
        *,
        listens: bool,
    ) -> None:
        """Leave no process behind: ask the engine if it listens by now, then kill."""
        if process.returncode is None and listens:
            with contextlib.suppress(zmq.ZMQError):
                await socket.send(encode(Shutdown()), flags=zmq.NOBLOCK)
            await asyncio.wait({exited}, timeout=_STOP_TIMEOUT)
        if process.returncode is None:
            process.kill()
            await exited
        socket.close(linger=0)


def _socket_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder of mode 0700, so that nobody else can connect, whose path a socket's address can hold."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(f"{parent}/{_SOCKET_FOLDER}12345678/engine")) > zmq.IPC_PATH_MAX_LEN:
        parent = "/tmp"  # noqa: S108  # a TMPDIR may be longer than the 107 bytes of a socket's address
    return tempfile.TemporaryDirectory(prefix=_SOCKET_FOLDER, dir=parent)


def _described(status: int | None) -> str:
    """How a process ended, by its exit status; a negative one is the number of a signal."""
    if status is None or status >= 0 or -status not in set(signal.Signals):
        return f"status {status}"
    ending = signal.Signals(-status)
    return f"status {status} ({ending.name}{': ' + _SIGNALS[ending] if ending in _SIGNALS else ''})"

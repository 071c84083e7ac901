"""The server's end of the line to the engine: submit requests, receive their outputs, abort what nobody waits for.

`EngineProcess` runs the engine in a process of its own, watches it and starts it again when it dies;
`InProcessEngine` runs it in this one (tests, embedding). Both route a step's outputs to the requests they belong to,
and keep the latest stats.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import json
import logging
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

import zmq
import zmq.asyncio

from engine.errors import DeepseekServeError, EngineUnavailableError, ModelError
from engine.protocol import (
    AbortRequest,
    EngineFailed,
    EngineInfo,
    EngineStats,
    GenerateRequest,
    SequenceOutput,
    Shutdown,
    StepOutput,
    ToEngine,
    decode_from_engine,
    encode,
)
from server.config import LOG_FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from engine.config import EngineConfig
    from engine.engine import Engine

logger = logging.getLogger(__name__)

_HEALTHY_AFTER = 60.0  # seconds of life after which a death is a first one again
_RESTART_DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before each try in a row
_STOP_TIMEOUT = 1.0  # seconds that the engine may take to end by itself


class EngineState(enum.StrEnum):
    """What the engine is doing, as /health says it."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class OutputStream:
    """The outputs of requests that belong together. Use as a context manager: leaving it aborts what runs."""

    def __init__(
        self, requests: list[GenerateRequest], send: Callable[[ToEngine], None], close: Callable[[OutputStream], None]
    ) -> None:
        self.request_ids = [request.request_id for request in requests]
        self._live = {(request.request_id, index) for request in requests for index in range(request.n)}
        self._outputs: deque[SequenceOutput] = deque()
        self._error: DeepseekServeError | None = None
        self._arrived = asyncio.Event()
        self._send, self._close = send, close

    def push(self, output: SequenceOutput) -> None:
        """Called by the client: one of these requests has grown."""
        self._outputs.append(output)
        self._arrived.set()

    def fail(self, error: DeepseekServeError) -> None:
        """Called by the client: nothing more will come."""
        self._error = error
        self._arrived.set()

    def abort(self, request_id: str, index: int) -> None:
        """End one sequence; no more of its outputs are given out."""
        if (request_id, index) in self._live:
            self._live.remove((request_id, index))
            self._send(AbortRequest(request_id, index))

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> SequenceOutput:
        while self._live:
            while self._outputs:
                output = self._outputs.popleft()
                key = (output.request_id, output.index)
                if key in self._live:
                    if output.finish_reason is not None:
                        self._live.remove(key)
                    return output
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for request_id in {request_id for request_id, _ in self._live}:
            self._send(AbortRequest(request_id))
        self._live.clear()
        self._close(self)


class EngineClient(ABC):
    """What both kinds share: routing, stats, state."""

    def __init__(self) -> None:
        self.info: EngineInfo | None = None  # None whenever no engine takes requests
        self.stats: EngineStats | None = None
        self.state = EngineState.STARTING
        self._streams: dict[str, OutputStream] = {}

    @abstractmethod
    async def run(self) -> None:
        """Run the engine until cancelled.

        Raises:
            ConfigError, ModelError, EngineUnavailableError: it could not start even once.
        """

    @abstractmethod
    def _send(self, message: ToEngine) -> None:
        """Hand a message to the engine; drop it when there is none."""

    def submit(self, requests: list[GenerateRequest]) -> OutputStream:
        """Start requests that were checked against `info`.

        Raises:
            EngineUnavailableError: the engine is starting, restarting or gone.
        """
        self.require_info()
        stream = OutputStream(requests, self._send, self._forget)
        for request in requests:
            self._streams[request.request_id] = stream
            self._send(request)
        return stream

    def require_info(self) -> EngineInfo:
        """The engine's limits.

        Raises:
            EngineUnavailableError: no engine takes requests now.
        """
        if self.info is None:
            raise EngineUnavailableError(f"The engine is {self.state}. Please try again soon.")
        return self.info

    def fail_all(self, reason: str) -> None:
        """End every running request with an error that says it may be tried again."""
        for stream in list(self._streams.values()):
            stream.fail(EngineUnavailableError(reason))

    def _forget(self, stream: OutputStream) -> None:
        for request_id in stream.request_ids:
            self._streams.pop(request_id, None)

    def _ready(self, info: EngineInfo) -> None:
        self.info, self.state = info, EngineState.READY
        self.stats = EngineStats(0, 0, 0, info.num_blocks)

    def _dispatch(self, step: StepOutput) -> None:
        self.stats = step.stats
        for output in step.outputs:
            if (stream := self._streams.get(output.request_id)) is not None:
                stream.push(output)


class EngineProcess(EngineClient):
    """The engine in a child process. If it dies, running requests fail, and it is started again."""

    def __init__(self, config: EngineConfig, log_level: str) -> None:
        super().__init__()
        settings = {"engine": dataclasses.asdict(config), "log_level": log_level, "log_format": LOG_FORMAT}
        self._settings = json.dumps(settings)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None

    async def run(self) -> None:
        try:
            status = await self._run_once()
            if self.state is EngineState.STARTING:
                raise EngineUnavailableError(f"the engine ended with status {status} before it was ready")
            num_deaths = 0  # in a row
            while True:
                delay = _RESTART_DELAYS[min(num_deaths, len(_RESTART_DELAYS) - 1)]
                logger.error("the engine died with status %s; starting it again in %g s", status, delay)
                await asyncio.sleep(delay)
                started = time.monotonic()
                status = await self._run_once()
                num_deaths = 0 if time.monotonic() - started > _HEALTHY_AFTER else num_deaths + 1
        finally:
            self.state = EngineState.STOPPED
            self._context.destroy(linger=0)

    async def _run_once(self) -> int | None:
        """Start the engine and serve with it until it ends; its exit status."""
        with tempfile.TemporaryDirectory(prefix="deepseek-serve-") as folder:  # mode 0700: nobody else can connect
            endpoint = f"ipc://{folder}/engine"
            socket = self._context.socket(zmq.PAIR)
            socket.set_hwm(0)
            socket.bind(endpoint)
            # -P: the working directory must not shadow our packages. The pipe's end tells the engine that we are gone.
            command = [sys.executable, "-P", "-m", "engine.process", endpoint, self._settings]
            # A session of its own: ctrl-C and signals to the group are for us, and we say when it is to stop.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
            receiving = asyncio.create_task(self._receive(socket))
            exited = asyncio.create_task(process.wait())
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
                self.info, self._socket = None, None
                self.state = EngineState.RESTARTING if self.state is EngineState.READY else self.state
                self.fail_all("The engine stopped while it was computing this request. Please try again.")
                receiving.cancel()
                await self._end(process, exited, socket)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            match decode_from_engine(await socket.recv()):
                case StepOutput() as step:
                    self._dispatch(step)
                case EngineInfo() as info:
                    self._socket = socket
                    self._ready(info)
                case EngineFailed() as failed:
                    raise ModelError(failed.message)

    async def _end(
        self, process: asyncio.subprocess.Process, exited: asyncio.Task[int], socket: zmq.asyncio.Socket
    ) -> None:
        """Leave no process behind: ask, then kill."""
        if process.returncode is None:
            with contextlib.suppress(zmq.ZMQError):
                await socket.send(encode(Shutdown()), flags=zmq.NOBLOCK)
            await asyncio.wait({exited}, timeout=_STOP_TIMEOUT)
        if process.returncode is None:
            process.kill()
            await exited
        socket.close(linger=0)

    def _send(self, message: ToEngine) -> None:
        if self._socket is not None:
            self._socket.send(encode(message), flags=zmq.NOBLOCK)  # without a high-water mark it never has to wait


class InProcessEngine(EngineClient):
    """The engine in this process, its steps in a thread."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._inbox: deque[ToEngine] = deque()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        self._ready(self._engine.info)
        try:
            while True:
                if not self._inbox and not self._engine.has_work:
                    self._wake.clear()
                    await self._wake.wait()
                while self._inbox:
                    match self._inbox.popleft():
                        case GenerateRequest() as request:
                            self._engine.add(request)
                        case AbortRequest() as request:
                            self._engine.abort(request)
                if self._engine.has_work:
                    self._dispatch(await asyncio.to_thread(self._engine.step))
                else:
                    self._dispatch(StepOutput([], self._engine.stats()))
        finally:
            self.info, self.state = None, EngineState.STOPPED
            self.fail_all("The engine stopped.")

    def _send(self, message: ToEngine) -> None:
        self._inbox.append(message)
        self._wake.set()

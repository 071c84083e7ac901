"""The server's end of the line to the engine: send requests, give out what each step brought, keep the latest stats.

`EngineProcess` runs the engine in a process of its own, watches it and starts it again when it dies or hangs;
`InProcessEngine` runs it in a thread of this one (tests, embedding). The engine's end is `Engine.serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import json
import logging
import queue
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio

from engine.engine_info import EngineInfo
from engine.errors import BrokenOffError, DrainingError, EngineUnavailableError, ModelError
from engine.loading.phases import PAUSING
from engine.protocol import (
    MAX_UNREAD,
    EngineFailed,
    EngineStats,
    GenerateRequest,
    Loading,
    Ping,
    Shutdown,
    StepOutput,
    ToEngine,
    decode_from_engine,
    encode,
)
from engine.snapshot import EngineSnapshot, Inspect
from server.output_stream import OutputStream
from server.startup import Startup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.logs import LogFormat
    from engine.protocol import PoolRequest, Vocabulary

logger = logging.getLogger(__name__)

_HEALTHY_AFTER = 60.0  # seconds after which an engine counts as healthy: the delays begin again
_RESTART_DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before each start, of starts in a row that fail
_FAILED_TO_START = 2  # the exit status of an engine whose settings or model are at fault
_CLOSED = "The server is shutting down. Please try again."
_INSPECTION_TIMEOUT = 2.0  # seconds in which the engine tells what is in it
_MAX_INSPECTIONS = 4  # at a time
_TURN = 0.002  # seconds of messages that wait, until others run in between
_STOP_TIMEOUT = 1.0  # seconds that the engine may take to end by itself


class EngineState(enum.StrEnum):
    """What the engine is doing, as /health says it."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class EngineClient(ABC):
    """What both kinds share: routing, stats, state.

    Attributes:
        startup: how far the start is; whoever began it before the engine's part may put theirs here.
        name: what messages call it.
    """

    def __init__(self, name: str = "engine") -> None:
        self.name = name
        self.info: EngineInfo | None = None  # None whenever no engine takes requests
        self.stats: EngineStats | None = None
        self.state = EngineState.STARTING
        self.num_restarts = 0
        self.last_end: str | None = None  # how the engine before this one ended
        self.startup = Startup()
        self.vocabulary: Vocabulary | None = None  # what grammars are matched on; None before the first
        self._knows_vocabulary = False  # the engine that runs now
        self.engine_pid: int | None = None  # of the engine's process, where there is one
        self.started = asyncio.Event()  # set when the engine is ready for the first time
        self._is_closed = False
        self._streams: dict[str, OutputStream] = {}
        self.on_step: Callable[[EngineStats, EngineStats], None] = lambda *_: None  # the stats before, and now
        self.heard_at: float | None = None  # when the engine's last message came
        self._inspections: dict[int, asyncio.Future[EngineSnapshot]] = {}
        self._inspection_numbers = itertools.count()

    @property
    def problem(self) -> str | None:
        """Why the engine is being started again, where it is."""
        is_gone = self.state is EngineState.RESTARTING and self.last_end is not None
        return f"the {self.name} ended: {self.last_end}" if is_gone else None

    @property
    def num_requests(self) -> int:
        """Prompts that the engine has."""
        return len(self._streams)

    @abstractmethod
    async def run(self) -> None:
        """Run the engine until cancelled.

        Raises:
            ConfigError, ModelError, EngineUnavailableError: it could not start even once.
        """

    @abstractmethod
    def _send(self, message: ToEngine) -> None:
        """Hand a message to the engine; drop it when there is none."""

    def submit(self, requests: Sequence[GenerateRequest | PoolRequest]) -> OutputStream:
        """Start requests that were checked against `info`.

        Raises:
            EngineUnavailableError: the engine is starting, restarting or gone, or `close` was called.
        """
        self.require_info()
        stream = OutputStream(requests, self._send, self._forget)
        if not self._knows_vocabulary and any(
            isinstance(request, GenerateRequest) and request.sampling.grammar for request in requests
        ):
            assert self.vocabulary is not None, "a grammar that nobody has checked"
            self._send(self.vocabulary)
            self._knows_vocabulary = True
        for request in requests:
            self._streams[request.request_id] = stream
            self._send(request)
        return stream

    def require_info(self) -> EngineInfo:
        """The engine's limits.

        Raises:
            EngineUnavailableError: no engine takes requests now, or `close` was called.
        """
        if self._is_closed:
            raise DrainingError(_CLOSED)
        if self.info is None:
            raise EngineUnavailableError(f"The {self.name} is {self.state}. Please try again soon.")
        return self.info

    def fail_all(self, reason: str) -> None:
        """End every running request with an error that says it may be tried again."""
        for stream in list(self._streams.values()):
            stream.fail(BrokenOffError(reason))

    def close(self) -> None:
        """End every running request, and refuse those that come."""
        self._is_closed = True
        self.fail_all(_CLOSED)

    def _forget(self, stream: OutputStream) -> None:
        for request_id in stream.request_ids:
            self._streams.pop(request_id, None)

    def _ready(self, info: EngineInfo) -> None:
        self.info, self.state, self._knows_vocabulary = info, EngineState.READY, False
        self.stats = EngineStats(0, 0, 0, info.num_blocks)
        self.startup.finish()
        self.started.set()

    async def inspect(self, limit: int) -> EngineSnapshot:
        """Ask the engine what is in it, at most `limit` sequences of a kind; it answers between two steps.

        Raises:
            TimeoutError: it does not answer, or many ask already.
        """
        if len(self._inspections) >= _MAX_INSPECTIONS:
            raise TimeoutError
        number = next(self._inspection_numbers)
        answer: asyncio.Future[EngineSnapshot] = asyncio.get_running_loop().create_future()
        self._inspections[number] = answer
        try:
            self._send(Inspect(number, limit))
            async with asyncio.timeout(_INSPECTION_TIMEOUT):
                return await answer
        finally:
            del self._inspections[number]

    def _inspected(self, snapshot: EngineSnapshot) -> None:
        answer = self._inspections.get(snapshot.number)
        if answer is not None and not answer.done():
            answer.set_result(snapshot)

    def _dispatch(self, step: StepOutput) -> None:
        before, self.stats = self.stats, step.stats
        if before is not None:
            self.on_step(before, step.stats)
        for output in step.outputs:
            if (stream := self._streams.get(output.request_id)) is not None:
                stream.push(output)


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

    async def run(self) -> None:
        try:
            status = await self._run_once()
            if self.state is EngineState.STARTING:
                how = self._why_killed or f"status {status}"
                raise EngineUnavailableError(f"the {self.name} ended before it was ready: {how}")
            num_deaths = 0  # in a row
            while True:
                delay = _RESTART_DELAYS[min(num_deaths, len(_RESTART_DELAYS) - 1)]
                self.last_end = self._why_killed or f"status {status}"
                logger.error("the %s died with status %s; starting it again in %g s", self.name, status, delay)
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
        with tempfile.TemporaryDirectory(prefix="deepseek-serve-") as folder:  # mode 0700: nobody else can connect
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

    def _send(self, message: ToEngine) -> None:
        if self._socket is not None:
            # Without a high-water mark it never has to wait.
            sent: asyncio.Future[Any] = self._socket.send(encode(message), flags=zmq.NOBLOCK)  # type: ignore[assignment]
            if sent.done():  # with an error where the engine has just died, which ends all requests in a moment
                sent.exception()


class InProcessEngine(EngineClient):
    """The engine in a thread of this process."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._transport: _QueueTransport | None = None

    async def run(self) -> None:
        self._transport = _QueueTransport(asyncio.get_running_loop(), self._take)
        self._ready(self._engine.info)
        serving = asyncio.create_task(asyncio.to_thread(self._engine.serve, self._transport))
        try:
            await asyncio.shield(serving)
        finally:
            self.info, self.state = None, EngineState.STOPPED
            self.fail_all("The engine stopped.")
            self._send(Shutdown())
            await serving

    def _take(self, message: StepOutput | EngineSnapshot) -> None:
        if isinstance(message, EngineSnapshot):
            self._inspected(message)
        else:
            self._dispatch(message)

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None:
            self._transport.inbox.put(message)


class _QueueTransport:
    """The engine's end of a queue; what the engine sends is given out by the event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, dispatch: Callable[[StepOutput | EngineSnapshot], None]
    ) -> None:
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._loop, self._dispatch = loop, dispatch

    def receive(self, *, wait: bool) -> ToEngine | None:
        with contextlib.suppress(queue.Empty):
            return self.inbox.get(block=wait)
        return None

    def send(self, message: StepOutput | EngineSnapshot) -> None:
        self._loop.call_soon_threadsafe(self._dispatch, message)

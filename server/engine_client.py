"""The server's end of the line to the engine: send requests, give out what each step brought, keep the latest stats.

A subclass knows where the engine runs (server.engine_process, server.in_process_engine). The engine's own end is
`Engine.serve`.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from engine.engine_info import EngineInfo
from engine.errors import BrokenOffError, DrainingError, EngineUnavailableError
from engine.protocol import (
    EngineStats,
    GenerateRequest,
    StepOutput,
    ToEngine,
)
from engine.snapshot import EngineSnapshot, Inspect
from server.output_stream import OutputStream
from server.startup import Startup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.protocol import PoolRequest, Vocabulary

logger = logging.getLogger(__name__)

_CLOSED = "The server is shutting down. Please try again."
_INSPECTION_TIMEOUT = 2.0  # seconds in which the engine tells what is in it
_MAX_INSPECTIONS = 4  # at a time


class EngineState(enum.StrEnum):
    """What the engine is doing, as /health says it."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class EngineClient(ABC):
    """What all kinds of engine share: routing, stats, state.

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

    def _dispatch(self, step: StepOutput) -> None:
        before, self.stats = self.stats, step.stats
        if before is not None:
            self.on_step(before, step.stats)
        for output in step.outputs:
            if (stream := self._streams.get(output.request_id)) is not None:
                stream.push(output)

    def _forget(self, stream: OutputStream) -> None:
        for request_id in stream.request_ids:
            self._streams.pop(request_id, None)

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

    def _ready(self, info: EngineInfo) -> None:
        self.info, self.state, self._knows_vocabulary = info, EngineState.READY, False
        self.stats = EngineStats(0, 0, 0, info.num_blocks)
        self.startup.finish()
        self.started.set()

    def fail_all(self, reason: str) -> None:
        """End every running request with an error that says it may be tried again."""
        for stream in list(self._streams.values()):
            stream.fail(BrokenOffError(reason))

    def close(self) -> None:
        """End every running request, and refuse those that come."""
        self._is_closed = True
        self.fail_all(_CLOSED)

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

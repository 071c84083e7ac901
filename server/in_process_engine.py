"""The engine in a thread of the server's own process: for tests, and for programs that embed the server."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from typing import TYPE_CHECKING

from engine.protocol import Shutdown, StepOutput, ToEngine
from engine.snapshot import EngineSnapshot
from server.engine_client import EngineClient, EngineState

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.engine import Engine


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

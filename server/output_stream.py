"""What a caller holds of its requests: their outputs as they come. Sends aborts; knows nothing of who computes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from engine.protocol import AbortRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from engine.errors import DeepseekServeError
    from engine.protocol import GenerateRequest, PoolRequest, SequenceOutput, ToEngine


_GRACE = 1.0  # seconds that the engine is given to end a request at its deadline


class OutputStream:
    """The outputs of requests that belong together. Use as a context manager: leaving it aborts what runs.

    Waiting raises TimeoutError if the engine does not end the requests at their deadline.
    """

    def __init__(
        self,
        requests: Sequence[GenerateRequest | PoolRequest],
        send: Callable[[ToEngine], None],
        close: Callable[[OutputStream], None],
    ) -> None:
        self.request_ids = [request.request_id for request in requests]
        self._live = {(request.request_id, index) for request in requests for index in range(request.n)}
        self._outputs: deque[SequenceOutput] = deque()
        self._error: DeepseekServeError | None = None
        self._arrived = asyncio.Event()
        self._send, self._close = send, close
        deadline = requests[0].scheduling.deadline if requests else None  # all have the same
        self._deadline = None if deadline is None else deadline + _GRACE

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
            self._arrived.set()  # whoever waits may wait for nothing now

    def take(self) -> SequenceOutput | None:
        """The next output, if one has arrived."""
        while self._outputs:
            output = self._outputs.popleft()
            key = (output.request_id, output.index)
            if key in self._live:
                if output.finish_reason is not None:
                    self._live.remove(key)
                return output
        return None

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> SequenceOutput:
        while self._live:
            if (output := self.take()) is not None:
                return output
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            async with asyncio.timeout_at(self._deadline):
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

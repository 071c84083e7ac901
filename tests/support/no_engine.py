"""Clients without an engine: one for what only reads its state and stats, one that answers as the test says."""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING

from engine.engine_info import EngineInfo
from engine.protocol import AbortRequest, EngineStats, PoolRequest, SequenceOutput, StepOutput
from server.engine_client import EngineClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.protocol import ToEngine

POOLING_INFO = EngineInfo(
    max_seq_len=64,
    vocab_size=258,
    num_blocks=8,
    block_size=16,
    device="cpu",
    dtype="float32",
    max_batch_size=4,
    tasks=("embed", "classify"),
    hidden_size=2,
    labels=("no", "yes"),
)


class NoEngine(EngineClient):
    """An engine that never starts and takes nothing."""

    async def run(self) -> None:
        raise AssertionError("there is no engine to run")

    def _send(self, message: ToEngine) -> None:
        raise AssertionError("there is no engine to send to")


class PoolingEngine(EngineClient):
    """An engine that is ready, and answers each PoolRequest as soon as the event loop runs.

    Attributes:
        requests: those that came; aborted has the ids of those that were aborted.
    """

    def __init__(
        self, values: Callable[[PoolRequest], list[float] | SequenceOutput | None], info: EngineInfo = POOLING_INFO
    ) -> None:
        """`values` are a request's; None leaves it without an answer, and an output is sent as it is."""
        super().__init__()
        self.requests: list[PoolRequest] = []
        self.aborted: list[str] = []
        self._values = values
        self._ready(info)

    async def run(self) -> None:
        raise AssertionError("there is no engine to run")

    def _send(self, message: ToEngine) -> None:
        if isinstance(message, AbortRequest):
            self.aborted.append(message.request_id)
            return
        assert isinstance(message, PoolRequest)
        self.requests.append(message)
        if (answer := self._values(message)) is not None:
            self.answer(message, answer)

    def answer_all(self, values: Callable[[PoolRequest], list[float]]) -> None:
        """Give the requests that came, and those that come, these values."""
        self._values = values
        for request in list(self.requests):
            self.answer(request, values(request))

    def answer(self, request: PoolRequest, answer: list[float] | SequenceOutput) -> None:
        """Send a request's values, or an output as it is."""
        if not isinstance(answer, SequenceOutput):
            pooled = array("f", answer).tobytes()
            answer = SequenceOutput(request.request_id, 0, [], "stop", queue_time=0.0, pooled=pooled)
        step = StepOutput([answer], EngineStats(0, 0, 0, 8))
        asyncio.get_running_loop().call_soon(self._dispatch, step)

"""The message loop: take messages, compute a step, send what it brought. Every engine runs in it.

A transport carries the messages: ZeroMQ for the engine's process, a queue for an engine in the server's own. The
loop knows neither.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from engine.protocol import AbortRequest, GenerateRequest, SequenceOutput, Shutdown, StepOutput

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.protocol import ToEngine

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """The line to whoever sends requests."""

    def receive(self, *, wait: bool) -> ToEngine | None:
        """The next message; without `wait`, None if none is there."""

    def send(self, message: StepOutput) -> None:
        """Send a message; never waits."""


def serve(engine: Engine, transport: Transport) -> None:
    """Serve until Shutdown. Each round sends one StepOutput, also where messages left nothing to compute."""
    while True:
        outputs: list[SequenceOutput] = []
        message = transport.receive(wait=False)
        if message is None and not engine.has_work:
            if engine.prepare():
                continue
            message = transport.receive(wait=True)
        while message is not None:
            if isinstance(message, Shutdown):
                return
            outputs += _take(engine, message)
            message = transport.receive(wait=False)
        step = engine.step() if engine.has_work else StepOutput([], engine.stats())
        transport.send(StepOutput(outputs + step.outputs, step.stats))


def _take(engine: Engine, message: GenerateRequest | AbortRequest) -> list[SequenceOutput]:
    """Act on a message; a request that cannot be taken in gets an error for each of its sequences.

    This is the engine's one error boundary. The server refuses bad requests before it sends them (EngineInfo.check);
    whatever still goes wrong must not end the requests of others.
    """
    if isinstance(message, AbortRequest):
        engine.abort(message)
        return []
    try:
        engine.add(message)
    except Exception:
        logger.exception("request %s cannot be taken in", message.request_id)
        engine.abort(AbortRequest(message.request_id))  # the sequences added before the failure
        return [SequenceOutput(message.request_id, index, [], "error") for index in range(message.n)]
    return []

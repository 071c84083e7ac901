"""A client without an engine, for what only reads its state and stats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.engine_client import EngineClient

if TYPE_CHECKING:
    from engine.protocol import ToEngine


class NoEngine(EngineClient):
    """An engine that never starts and takes nothing."""

    async def run(self) -> None:
        raise AssertionError("there is no engine to run")

    def _send(self, message: ToEngine) -> None:
        raise AssertionError("there is no engine to send to")

"""What the server is doing, as the probes in server.routes.operations say it. Owns whether the server is draining."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.engine_client import EngineState

if TYPE_CHECKING:
    from server.engine_client import EngineClient


class Health:
    """The engine's state and the server's own.

    Attributes:
        is_draining: the server has been told to end, and may still take requests (server.http.drain).
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self.is_draining = False

    @property
    def status(self) -> str:
        """One word for all: starting, ready, restarting, stopped or draining."""
        return "draining" if self.is_draining else self._client.state

    @property
    def is_ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self._client.info is not None and not self.is_draining

    @property
    def is_live(self) -> bool:
        """Whether the engine runs or will be started again."""
        return self._client.state is not EngineState.STOPPED

    @property
    def has_started(self) -> bool:
        """Whether the engine was ready at least once."""
        return self._client.state is not EngineState.STARTING

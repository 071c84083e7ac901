"""What the server is doing, as the probes in server.routes.operations say it. Owns whether the server is draining."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.engine_client import EngineState

if TYPE_CHECKING:
    from server.engine_client import EngineClient
    from server.startup import Startup

_WORST_FIRST = (EngineState.STOPPED, EngineState.STARTING, EngineState.RESTARTING, EngineState.READY)


class Health:
    """The engine's state, the guard's if there is one, and the server's own.

    Attributes:
        is_draining: the server has been told to end, and may still take requests (server.http.drain).
    """

    def __init__(self, *clients: EngineClient) -> None:
        """The server is what the worst of its engines is: `clients`, the served model's first."""
        self._clients = clients
        self.is_draining = False

    @property
    def status(self) -> str:
        """One word for all: starting, ready, restarting, stopped or draining."""
        states = {client.state for client in self._clients}
        return "draining" if self.is_draining else next(state for state in _WORST_FIRST if state in states)

    @property
    def problem(self) -> str | None:
        """Why an engine is being started again, where one is."""
        return next((client.problem for client in self._clients if client.problem), None)

    @property
    def startup(self) -> Startup:
        """The start that is under way, or the served model's."""
        under_way = (client.startup for client in self._clients if client.state is not EngineState.READY)
        return next(under_way, self._clients[0].startup)

    @property
    def is_ready(self) -> bool:
        """Whether new requests should be sent here."""
        return all(client.info is not None for client in self._clients) and not self.is_draining

    @property
    def is_live(self) -> bool:
        """Whether the engines run or will be started again."""
        return all(client.state is not EngineState.STOPPED for client in self._clients)

    @property
    def has_started(self) -> bool:
        """Whether the engines were ready at least once."""
        return all(client.state is not EngineState.STARTING for client in self._clients)

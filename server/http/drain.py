"""The server's end, from a signal to the last request: uvicorn, with a drain that a load balancer can follow.

1. SIGTERM: /readyz fails. For --drain-delay seconds new requests are still taken, and answers say
   `Connection: close`, so that clients move away without losing one. After ctrl-C there is no delay. Batches are left
   at once, for the next server to go on with.
2. The listener and idle connections are closed; running requests may finish for --drain-timeout seconds.
3. What still runs ends with an error that says why, and what comes is refused with 503; a second signal leads here.
4. Connections whose clients do not read are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from server.config import ServerConfig
    from server.engine_client import EngineClient
    from server.health import Health
    from server.http.certificate import Certificate

logger = logging.getLogger(__name__)

BACKLOG = 2048  # connections that may wait to be accepted
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLOSE = (b"connection", b"close")
_ACCEPTED = (
    8  # connections that asyncio accepts in a turn of the loop: what the limit of open files must leave for a moment
)
_LAST_WORDS = 1.0  # seconds that a client may take to read the error that ended its request


class Server(uvicorn.Server):
    """uvicorn, which accepts and closes connections, with the steps above."""

    def __init__(
        self,
        app: FastAPI,
        config: ServerConfig,
        client: EngineClient,
        health: Health,
        certificate: Certificate | None = None,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        """With a `certificate`, HTTPS is spoken. `on_drain` is called with the first signal."""
        from server.http.connections import limited_protocol  # as late as the app

        state = app.state
        super().__init__(
            uvicorn.Config(
                app,
                http=limited_protocol(  # type: ignore[arg-type]  # it is called
                    config, state.server.metrics.requests.count_refused, state.access.refused, certificate
                ),
                proxy_headers=False,  # uvicorn would believe everyone on this machine; server.http.proxies asks
                log_config=None,
                log_level="warning",
                access_log=False,  # it would log query strings; server.http.access has one
                timeout_keep_alive=65,
                backlog=_ACCEPTED,
                timeout_graceful_shutdown=math.ceil(config.drain_timeout + 2 * _LAST_WORDS),  # for what step 4 leaves
                ws="none",
                lifespan="off",
            )
        )
        self.is_serving = asyncio.Event()  # set once connections are accepted
        self._delay, self._patience = config.drain_delay, config.drain_timeout
        self._client, self._health, self._on_drain = client, health, on_drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn, whose backlog is asyncio's too; more may wait to be accepted than are accepted at once."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)
        self.is_serving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Called by uvicorn; unlike its own, this does not raise the signal again, so that our end is orderly."""
        for sig in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(sig, self._on_signal, sig)
        yield

    def _on_signal(self, sig: int) -> None:
        """Take step 1; a second signal, of either kind, leads to step 3 at once."""
        if self._health.is_draining:
            self.should_exit = True
            self._end_requests()
            return
        delay = self._delay if sig == signal.SIGTERM else 0.0
        logger.info("draining: requests are taken for %g s more, then %g s are left to finish", delay, self._patience)
        self._health.is_draining = True
        self._on_drain()
        for headers in (self.config.encoded_headers, self.server_state.default_headers):  # now, and at uvicorn's tick
            headers.append(_CLOSE)
        asyncio.get_running_loop().call_later(delay, self._stop_accepting)

    def _stop_accepting(self) -> None:
        self.should_exit = True  # uvicorn closes the listener and idle connections, and waits for the others
        asyncio.get_running_loop().call_later(self._patience, self._end_requests)

    def _end_requests(self) -> None:
        self._client.close()
        asyncio.get_running_loop().call_later(_LAST_WORDS, self._cut_connections)

    def _cut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.tcp.abort()  # type: ignore[union-attr]  # it is a LimitedProtocol

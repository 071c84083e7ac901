"""HTTPS: a connection's handshake, before `server.http.connections` reads its requests as any others.

It is begun here and not by asyncio, so that connections which never finish it are counted, and cut in time.
"""

from __future__ import annotations

import asyncio
import traceback
from asyncio.sslproto import SSLProtocol
from typing import TYPE_CHECKING

from server.http.connection_limits import cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.http.certificate import Certificate
    from server.http.connection_limits import Connections
    from server.http.connections import LimitedProtocol

# asyncio keeps a buffer of 256 KiB for each connection, silent ones too: 1000 of them grew the server by 300 MB.
SSLProtocol.max_size = 8 << 10


class TlsProtocol(asyncio.Protocol):
    """A connection in its handshake; then its transport is LimitedProtocol's."""

    is_waiting = False

    def __init__(
        self,
        make: Callable[[], LimitedProtocol],
        connections: Connections,
        certificate: Certificate,
        plain_ports: frozenset[int] = frozenset(),
    ) -> None:
        """On `plain_ports` there is no TLS."""
        self._make, self._shared, self._certificate = make, connections, certificate
        self._plain_ports = plain_ports
        self.tcp: asyncio.Transport
        self._received = bytearray()
        self._is_lost = False

    # Called by asyncio: connection_made before the handshake, the others in the moment between its end and `_shake`'s.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.tcp = transport
        if transport.get_extra_info("sockname")[1] in self._plain_ports:
            self._hand_over(transport)
            return
        transport.pause_reading()  # the handshake's bytes are for start_tls
        if self._shared.enter(self) is None:
            self._task = asyncio.get_running_loop().create_task(self._shake())
        else:  # nothing can be said without the handshake
            self._shared.leave(self)
            cut(transport)

    def data_received(self, data: bytes) -> None:
        self._received += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._is_lost = True

    async def _shake(self) -> None:
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self.tcp,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=self._shared.header_timeout,
                ssl_shutdown_timeout=self._shared.write_timeout,  # in which the end of an answer is read, too
            )
        except OSError as error:  # it speaks no TLS, leaves, or is too slow
            self.tcp.abort()
            traceback.clear_frames(
                error.__traceback__
            )  # a circle, which would keep all of it until garbage is collected
            return
        finally:
            self._shared.leave(self)
        if transport is not None and not self._is_lost:
            self._hand_over(transport)

    def _hand_over(self, transport: asyncio.Transport) -> None:
        protocol = self._make()
        protocol.tcp = self.tcp
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._received:
            protocol.data_received(bytes(self._received))

"""The limits of connections, and what all connections share: how many there are, and the bytes of all their bodies.

Costs: O(1) a connection, whatever their number.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from server.http.cors import parse_origins
from server.http.pacing import Pace
from server.http.proxies import TrustedProxies, client_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from server.config import ServerConfig

logger = logging.getLogger(__name__)

_FORM_BYTES = 16 << 10  # of an upload beside its file
_ADMIN_CONNECTIONS = 64  # which --max-connections does not count, so that an administrator always gets in
_SPARE_FILES = 128 + _ADMIN_CONNECTIONS  # descriptors for all that is not a client's connection


@dataclass
class Connections:
    """The limits, and what all connections share.

    Attributes:
        header_timeout: seconds from the first byte (of a new connection: from its start) to the end of the headers.
        body_timeout: seconds from there to the end of the body.
        write_timeout: seconds that a client may leave its full buffers unread.
        max_file_bytes: bytes of a file that is uploaded, for which the time begins anew with each of its MiB.
        max_bodies_bytes: bytes of all other bodies that are under way.
        count_refused: called with the metric's reason for each answer that is a refusal.
        answered: called with the status, the client's address and the body's bytes of each answer that is given here.
        origins: whose pages may read the answers (server.http.cors).
        max_client_connections: of one address, or of a network of IPv6; None is no limit.
        proxies: whose connections are not counted as those of a client.
        pace: how fast requests begin.
        abortable: connections without a whole request, the oldest such first; one of them makes room for a new one,
            unless it has sent bytes that wait to be parsed.
        num_of: connections of each client, if they are limited; `client_of` says whose each is.
    """

    max_connections: int
    header_timeout: float
    body_timeout: float
    write_timeout: float
    max_body_bytes: int
    max_file_bytes: int
    max_bodies_bytes: int
    count_refused: Callable[[str], None]
    answered: Callable[[int, str, int], None] = lambda *_: None
    origins: list[str] = field(default_factory=list)
    max_client_connections: int | None = None
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    pace: Pace = field(default_factory=Pace)
    num_open: int = 0
    bodies_bytes: int = 0
    abortable: dict[Connection, None] = field(default_factory=dict)
    num_of: Counter[str] = field(default_factory=Counter)
    client_of: dict[Connection, str] = field(default_factory=dict)

    def enter(self, connection: Connection) -> tuple[int, str] | None:
        """Count a new connection; returns why it cannot stay, as a status and a message, or None."""
        self.num_open += 1
        self.abortable[connection] = None
        peer = connection.tcp.get_extra_info("peername")
        if self.max_client_connections is not None and peer is not None and peer[0] not in self.proxies:
            client = self.client_of[connection] = client_of(peer[0])
            self.num_of[client] += 1
            if self.num_of[client] > (most := self.max_client_connections):
                return 429, f"This address has {most} connections, the most that one may have; try again."
        if self.num_open > self.max_connections:
            longest = next(other for other in self.abortable if not other.is_waiting)  # a new one is not
            if longest is connection:
                return 503, f"The server has its {self.max_connections} connections; try again."
            del self.abortable[longest]  # at once: others may be accepted before it is lost
            longest.tcp.abort()
        return None

    def leave(self, connection: Connection) -> None:
        """Count a connection no longer."""
        self.num_open -= 1
        self.abortable.pop(connection, None)
        if (client := self.client_of.pop(connection, None)) is not None:
            self.num_of[client] -= 1
            if not self.num_of[client]:
                del self.num_of[client]

    def is_owed_an_answer(self, connection: Connection) -> bool:
        """Whether a connection that cannot stay is told so: a client with twice as many as it may have is not."""
        client = self.client_of.get(connection)
        return client is None or self.num_of[client] <= 2 * (self.max_client_connections or 0)


class Connection(Protocol):
    """A connection in whatever state, with or without TLS above it."""

    @property
    def tcp(self) -> asyncio.Transport: ...

    @property
    def is_waiting(self) -> bool: ...


def cut(transport: asyncio.Transport) -> None:
    """End a connection at once, by a reset: the system keeps nothing of what a client has not read."""
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it may be closed already
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


NO_PORTS: Mapping[int, Connections] = MappingProxyType({})


def make_connections(
    config: ServerConfig, count_refused: Callable[[str], None], answered: Callable[[int, str, int], None]
) -> tuple[Connections, Mapping[int, Connections]]:
    """Return the limits of connections, and those of connections to ports that have limits of their own."""
    max_connections = _allowed_connections(config.max_connections)
    connections = Connections(
        max_connections=max_connections,
        header_timeout=config.header_timeout,
        body_timeout=config.body_timeout,
        write_timeout=config.write_timeout,
        max_body_bytes=int(config.max_body_size * (1 << 20)),
        max_file_bytes=int(config.max_file_size * (1 << 20)) + _FORM_BYTES,
        max_bodies_bytes=int(config.max_bodies_size * (1 << 20)),
        count_refused=count_refused,
        answered=answered,
        origins=parse_origins(config.cors_origins),
        max_client_connections=config.max_client_connections,
        proxies=TrustedProxies.parse(config.trusted_proxies),
    )
    if config.admin_port is None:
        return connections, NO_PORTS
    admin = replace(
        connections,
        max_connections=_ADMIN_CONNECTIONS,
        max_client_connections=None,
        pace=Pace(),
        abortable={},
        num_of=Counter(),
        client_of={},
    )
    return connections, {config.admin_port: admin}


def _allowed_connections(wanted: int) -> int:
    """How many connections there may be: as many as are wanted, if the open files allow that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_files = wanted + _SPARE_FILES
    if 0 <= soft < num_files:  # -1 is no limit
        soft = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft < 0 else max(1, min(wanted, soft - _SPARE_FILES))
    if allowed < wanted:
        logger.warning("the limit of %d open files (ulimit -n) leaves %d connections", soft, allowed)
    return allowed

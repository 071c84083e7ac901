"""An HTTP/1.1 client that sends POST requests and records when each piece of an answer arrives.

The client shares its machine with the server, so it parses with httptools: a streamed chunk costs 7 us, 58 with httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Take = Callable[[float, bytes], None]  # (time.perf_counter, some bytes of the body)


class ConnectionLostError(Exception):
    """The server closed the connection, or sent invalid HTTP, before the answer was complete."""


class Connection(asyncio.Protocol):
    """One connection, for one request at a time."""

    def __init__(self) -> None:
        self.reusable = True
        self.status = 0
        self.headers: dict[str, str] = {}
        self._now = 0.0
        self._take: Take = _ignore
        self._done: asyncio.Future[None] | None = None

    async def post(self, message: bytes, take: Take) -> None:
        """Send a request and pass on the pieces of the answer's body. Status and headers are set before that.

        Raises:
            ConnectionLostError: the answer broke off.
        """
        self.status, self.headers, self._take = 0, {}, take
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        try:
            await self._done
        except BaseException:
            self.close()
            raise
        finally:
            self._done, self._take = None, _ignore

    def close(self) -> None:
        """Close the connection."""
        self.reusable = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._fail(f"connection lost{f' ({error})' if error else ''}")

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        if self._done is None:
            self.close()  # an answer without a request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._take(self._now, body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if not self._parser.should_keep_alive():
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionLostError(reason))


class Pool:
    """Connections to one server, kept open between requests."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not the address of a server: expected http://HOST:PORT")
        self.host = parts.netloc
        self._address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        self._tls = True if parts.scheme == "https" else None
        self._idle: list[Connection] = []

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for one request.

        Raises:
            OSError: the server cannot be reached.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                break
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, *self._address, ssl=self._tls)
        yield connection
        if connection.reusable:
            self._idle.append(connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _ignore(_: float, __: bytes) -> None:
    pass

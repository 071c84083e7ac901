"""Answers while the model is being found or downloaded, before there is an app: to probes, and 503 to all else.

A thread with a loop of its own, which begins a moment after the port is bound: a model that is on disk is found sooner,
and such a start pays nothing. Whoever connects in between waits for the app.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from engine.names import name_thread
from server.http.drain import BACKLOG

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence

    from server.startup import Startup

_DELAY = 0.5  # seconds
_MAX_CONNECTIONS = 64  # at a time; what comes beyond is closed
_MAX_HEAD = 32 << 10  # bytes, as server.http.connections has it
_TIMEOUT = 5.0  # seconds for a request's headers
_LINGER = 1.0  # seconds in which a client that was answered may stop sending, so that it reads the answer
_PROBES = ("/health", "/ping", "/readyz", "/startupz")
_MESSAGE = "The server is starting: it has no model yet. Please try again soon."


class EarlyAnswers:
    """Use as a context manager, around what takes its time; the listeners are left as they are, listening."""

    def __init__(
        self, listeners: Sequence[socket.socket], startup: Startup, certificate: ssl.SSLContext | None = None
    ) -> None:
        """The first listener is the API's, whose `certificate` is None for HTTP; the others' answers are HTTP."""
        self._listeners, self._startup, self._certificate, self._num_open = listeners, startup, certificate, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="early-answers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        name_thread("early-answers")
        if not self._over.wait(_DELAY):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        with contextlib.ExitStack() as stack:
            for number, listener in enumerate(self._listeners):
                tls: dict[str, Any] = {}
                if number == 0 and self._certificate is not None:
                    tls = {"ssl": self._certificate, "ssl_handshake_timeout": _TIMEOUT}
                server = await asyncio.start_server(
                    self._answer, sock=listener.dup(), limit=_MAX_HEAD, backlog=BACKLOG, **tls
                )
                stack.callback(server.close)  # no waiting for clients that say nothing: `run` cancels their answers
            await asyncio.to_thread(self._over.wait)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_open += 1
        try:
            if self._num_open <= _MAX_CONNECTIONS:
                with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                    async with asyncio.timeout(_TIMEOUT):
                        head = await reader.readuntil(b"\r\n\r\n")
                    method, target = [*head.split(b" ", 2), b"", b""][:2]
                    writer.write(self._response(method, target))
                    if writer.can_write_eof():  # TLS cannot
                        writer.write_eof()
                    async with asyncio.timeout(_LINGER):
                        while await reader.read(_MAX_HEAD):
                            pass
        finally:
            self._num_open -= 1
            writer.close()

    def _response(self, method: bytes, target: bytes) -> bytes:
        path = target.partition(b"?")[0].decode("latin-1").rstrip("/")
        status = HTTPStatus.OK if path == "/livez" else HTTPStatus.SERVICE_UNAVAILABLE
        if path == "/startupz":
            answer: object = {"status": "starting", **self._startup.report()}
        elif path in _PROBES or path == "/livez":
            answer = {"status": "starting"}
        else:
            kind = "service_unavailable_error"
            answer = {"error": {"message": _MESSAGE, "type": kind, "param": None, "code": None}}
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n" + ("" if status is HTTPStatus.OK else "Retry-After: 1\r\n")
        return head.encode() + b"\r\n" + (b"" if method == b"HEAD" else body)

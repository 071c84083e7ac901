"""What a connection may cost: how long it may take or be silent, and how large its requests are.

uvicorn's protocol keeps a half-sent request as long as its client likes. Limits are applied here, where bytes arrive,
before a key is looked at or a body is held. Each refusal is an answer in OpenAI's shape, and the connection ends.
server.http.connection_limits owns the limits, and counts connections.

Costs: O(1) a read, whatever the number of connections.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from server.http.connection_limits import NO_PORTS, Connections, cut, make_connections
from server.http.cors import headers_for
from server.http.errors import REFUSED_STATUSES, error_response
from server.http.pacing import PacedProtocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from server.config import ServerConfig
    from server.http.certificate import Certificate

MAX_HEAD_BYTES = 32 << 10  # of a request line and its headers, as in nginx
MAX_HEADERS = 100
UPLOAD_PATH = b"/v1/files"
_LINGER = 2.0  # seconds in which a refused client may stop sending, so that it reads the answer instead of a reset


class LimitedProtocol(PacedProtocol):
    """uvicorn's HTTP/1.1 protocol under the limits of `Connections`, and at their pace."""

    def __init__(
        self, *args: Any, connections: Connections, by_port: Mapping[int, Connections] = NO_PORTS, **kwargs: Any
    ) -> None:
        """Connections to the ports in `by_port` have limits of their own."""
        super().__init__(*args, pace=connections.pace, **kwargs)
        self.tcp: asyncio.Transport = None  # type: ignore[assignment]  # beneath TLS; until connection_made
        self._shared, self._by_port = connections, by_port
        self._is_refused = False
        self._in_head = self._in_body = self._has_body = False
        self._num_begun = 0  # heads that the piece under way has begun or goes on with
        self._head_bytes = self._body_bytes = self._max_body_bytes = 0
        self._is_upload = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # Called by asyncio.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.tcp = self.tcp or transport
        shared = self._shared = self._by_port.get(transport.get_extra_info("sockname")[1], self._shared)
        self._start_read_timer(shared.header_timeout)
        if (fault := shared.enter(self)) is not None:
            self._refuse(*fault)
            if not shared.is_owed_an_answer(self):
                cut(self.tcp)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.leave(self)
        self._release_body()
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            super().data_received(data)

    def parse(self, piece: bytes) -> None:
        self._num_begun = int(self._in_head)
        is_behind_body, self._has_body = self._in_body, False
        super().parse(piece)
        # The parser keeps an unfinished header to itself, so bytes are counted here: pieces of one head alone, and
        # those of a chunked body that bring none of it (chunk extensions, trailers).
        if (self._in_head and self._num_begun == 1 and not is_behind_body) or (self._in_body and not self._has_body):
            self._head_bytes += len(piece)
        if (self._in_head or self._in_body) and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"The headers have more than {MAX_HEAD_BYTES} bytes, the most that is taken.")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(0)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _watch_reader(self, num_unread: int) -> None:
        """Cut off a client that has read nothing since this was called last, when it had so many bytes to read."""
        before, num_unread = num_unread, self.tcp.get_write_buffer_size()
        if self.tcp is not self.transport and not self.transport.is_closing():
            num_unread += self.transport.get_write_buffer_size()  # what TLS keeps
        if num_unread == before:
            cut(self.tcp)
        else:
            self._write_timer = self.loop.call_later(self._shared.write_timeout, self._watch_reader, num_unread)

    # Called by the parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._is_refused:
            self._in_head, self._head_bytes = True, 0
            self._num_begun += 1
            self._start_read_timer(self._shared.header_timeout)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # what follows a chunked body, a trailer, is dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_refused:
            return
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        announced = dict(self.headers).get(b"content-length", b"")
        self._is_upload = self.url.partition(b"?")[0].rstrip(b"/") == UPLOAD_PATH
        self._max_body_bytes = self._shared.max_file_bytes if self._is_upload else self._shared.max_body_bytes
        if head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            message = f"More than {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes of them: the most that is taken."
            self._refuse(431, message)
        elif announced.isdigit() and int(announced) > self._max_body_bytes:
            self._refuse(413, self._too_large)
        else:
            self.body_left = int(announced) if announced.isdigit() else None
            super().on_headers_complete()
            self._start_read_timer(self._shared.body_timeout)

    def on_body(self, body: bytes) -> None:
        if self._is_refused:
            return
        self._has_body = True
        if self.body_left is not None:
            self.body_left -= len(body)
        before = self._body_bytes
        self._body_bytes += len(body)
        if not self._is_upload:
            self._shared.bodies_bytes += len(body)
        elif self._body_bytes >> 20 > before >> 20:
            self._start_read_timer(self._shared.body_timeout)
        if self._body_bytes > self._max_body_bytes:
            self._refuse(413, self._too_large)
        elif self._shared.bodies_bytes > self._shared.max_bodies_bytes:
            self._refuse(503, "The server is receiving as many bytes of bodies as it takes at a time; try again.")
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused or self.is_behind_upgrade:
            return
        self._in_body = False
        self._shared.abortable.pop(self, None)
        self._release_body()
        self._stop_read_timer()
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._rest()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._read_timer is None and (self._in_head or self._in_body):  # it is read on
            self._start_read_timer(self._shared.header_timeout if self._in_head else self._shared.body_timeout)
        if self._read_timer is None and self.cycle.response_complete:  # no request is being read, none is queued
            self._shared.abortable[self] = None

    def _rest(self) -> None:
        """Wait for the next request where the answer to this one has not waited for its body."""
        self._shared.abortable[self] = None
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    # The ends of a connection.

    def shutdown(self) -> None:
        """Called by uvicorn when the server ends; what was read before is answered."""
        if self.is_waiting:
            self.loop.call_soon(self.shutdown)
            return
        super().shutdown()
        if self.transport.is_closing():
            self._end()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    @property
    def _too_large(self) -> str:
        return f"The body has more than {self._max_body_bytes} bytes, the most that is taken."

    def _refuse(self, status: int, message: str) -> None:
        """Answer, unless an answer has begun; drop what the client still sends for a while, then close."""
        if self._is_refused:  # what follows in the same read may be anything
            return
        self._is_refused = True
        self._release_body()
        self.drop_held()
        self.pipeline.clear()
        answered = self._unanswered
        if answered is not None:
            answered.disconnected = True  # the request's task ends as if the client had gone
            answered.message_event.set()
            self.flow.resume_reading()  # what was paused until the task takes more of the body
        if answered is not None and answered.response_started:
            self.transport.close()
            return
        if not self._is_answered:
            self._write_refusal(status, message)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_read_timer(_LINGER)

    def _write_refusal(self, status: int, message: str) -> None:
        if (reason := REFUSED_STATUSES.get(status)) is not None:
            self._shared.count_refused(reason)
        headers = {"Connection": "close", **headers_for(self._shared.origins, self.headers or ())}
        if status in (429, 503):
            headers["Retry-After"] = "1"
        path = self._unanswered.scope["path"] if self._unanswered else ""
        response = error_response(status, message, headers, path=path)
        self._shared.answered(status, self.client[0] if self.client else "-", len(response.body))
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [b"%b: %b" % header for header in response.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))

    def _end(self) -> None:
        """Close when nothing is left to say, whether or not the client says goodbye as TLS wants it."""
        if not self.transport.is_closing():  # asyncio's TLS is lost by a second close
            self.transport.close()
        if self.tcp is not self.transport:
            self.tcp.abort()

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The request that is being answered; others may wait behind it."""
        return self.answered if self.answered is not None and not self.answered.response_complete else None

    @property
    def _is_answered(self) -> bool:
        """Whether the request whose body is being read was answered without it."""
        return (
            self._in_body and self.cycle is not None and self.cycle.scope is self.scope and self.cycle.response_complete
        )

    def _time_out(self) -> None:
        if not self._is_refused and (self._in_head or self._unanswered):
            self._refuse(408, "The request did not arrive in time.")
        else:
            self._end()

    def _release_body(self) -> None:
        if not self._is_upload:
            self._shared.bodies_bytes -= self._body_bytes
        self._body_bytes = 0

    def _start_read_timer(self, seconds: float) -> None:
        """Give the client so long; while a request waits for the answer to another, nothing is read of it."""
        self._stop_read_timer()
        if not self.pipeline:
            self._read_timer = self.loop.call_later(seconds, self._time_out)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


def limited_protocol(
    config: ServerConfig,
    count_refused: Callable[[str], None],
    answered: Callable[[int, str, int], None],
    certificate: Certificate | None = None,
) -> Callable[..., asyncio.Protocol]:
    """What uvicorn calls for each connection; their number is at most what the open files allow."""
    connections, by_port = make_connections(config, count_refused, answered)
    limited = partial(LimitedProtocol, connections=connections, by_port=by_port)
    if certificate is None:
        return limited
    from server.http.tls import TlsProtocol

    return lambda **options: TlsProtocol(partial(limited, **options), connections, certificate, frozenset(by_port))

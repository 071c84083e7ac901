"""How fast requests begin: what a read may start, what a connection may have begun, what a turn of the loop takes.

A turn of the event loop runs all that is ready. A thousand sockets that are read in one turn would be a thousand
requests begun before any answer goes on, so a turn begins few, and connections take turns. Probes do not wait for
others. A client that sends requests without waiting for answers is read no further until it has those of before.

Costs: two microseconds a read.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_READ = 64 << 10  # bytes that are read of a connection at a time, and so the most that is held of it
_PIECE = 512  # bytes of heads that are parsed at a time: 28 requests at most
_CHUNKED_PIECE = 4 << 10  # bytes of a chunked body
_PER_TURN = 16  # pieces; more than connections are accepted (server.http.drain), so that these do not pile up
_PROBE = re.compile(rb"(?:GET|HEAD) /(?:health|livez|readyz|startupz|ping)[ ?]")


class Lane:
    """Who waits for a later turn of the event loop, the one that has waited longest first."""

    def __init__(self, per_turn: int = _PER_TURN) -> None:
        self._per_turn = self._left = per_turn
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_turning = False

    def take(self, go_on: Callable[[], None]) -> bool:
        """Whether a piece may be parsed in this turn; else `go_on` is called in a later one, with a piece to take."""
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._turn)
        if self._left and not self._waiting:
            self._left -= 1
            return True
        self._waiting.append(go_on)
        return False

    def _turn(self) -> None:
        """A new turn has begun."""
        self._left, self._is_turning = self._per_turn, bool(self._waiting)
        if self._is_turning:
            asyncio.get_running_loop().call_soon(self._turn)
        for _ in range(min(self._left, len(self._waiting))):
            self._left -= 1
            self._waiting.popleft()()


class Pace:
    """What all connections share: probes have a lane of their own."""

    def __init__(self) -> None:
        self.requests, self.probes = Lane(), Lane()


class _Flow(FlowControl):
    """uvicorn's switch for reading, which is also off while bytes are held."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_held = self._is_full = False

    def hold(self, is_held: bool) -> None:
        """Say whether bytes are held."""
        self._is_held = is_held
        self._switch()

    def pause_reading(self) -> None:
        self._is_full = True
        self._switch()

    def resume_reading(self) -> None:
        self._is_full = False
        self._switch()

    def _switch(self) -> None:
        if self._is_held or self._is_full:
            super().pause_reading()
        else:
            super().resume_reading()


class PacedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which parses what it reads in pieces, at a pace that it shares with the others.

    Attributes:
        is_waiting: it has bytes for a later turn.
        body_left: bytes that are to come of a body of known length; None in a chunked one, 0 outside of bodies.
        answered: the request that is being answered, or was last; uvicorn's `cycle` is the one that was read last.
        is_behind_upgrade: the parser takes the head for a whole message, since it asks for another protocol.
    """

    flow: _Flow

    def __init__(self, *args: Any, pace: Pace, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pace, self._lane = pace, pace.requests
        self._held = b""
        self._is_between = True  # messages
        self.is_waiting = False
        self.body_left: int | None = 0
        self.answered: RequestResponseCycle | None = None
        self.is_behind_upgrade = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        transport.max_size = MAX_READ  # type: ignore[attr-defined]  # asyncio's own would be 256 KiB

    def connection_lost(self, exc: Exception | None) -> None:
        self._held = b""
        super().connection_lost(exc)
        if self.answered is not None:  # uvicorn tells the request that was read last
            self.answered.disconnected = not self.answered.response_complete
            self.answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._held = self._held + data if self._held else data
        if not self.is_waiting:
            self._go_on()

    def on_message_begin(self) -> None:
        self._is_between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.is_behind_upgrade = self.parser.should_upgrade() and bool(_framing(self.headers))
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_between, self.body_left = True, 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._held and not self.is_waiting:
            self._go_on()

    def parse(self, piece: bytes) -> None:
        """Take in bytes; called for one piece after another. No other protocol is spoken, whoever asks for one."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._held = piece[upgrade.args[0] :] + self._held
            if self.is_behind_upgrade:
                self.is_behind_upgrade = False
                self.parser = _parser_of_body(self, _framing(self.headers))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def drop_held(self) -> None:
        """Forget what was read and not parsed, and read on."""
        self._held = b""
        self.flow.hold(False)

    def _turn(self) -> None:
        """The turn has come that was waited for."""
        self.is_waiting = False
        self._go_on(has_turn=True)

    def _go_on(self, *, has_turn: bool = False) -> None:
        """Parse what is held, as far as the pace allows; what belongs to a body of known length needs no turn."""
        while self._held and not self.pipeline and not self.transport.is_closing():
            if self._is_between:
                self._lane = self._pace.probes if _PROBE.match(self._held) else self._pace.requests
            if not self.body_left and not has_turn and not self._lane.take(self._turn):
                self.is_waiting = True
                break
            has_turn = False
            size = self.body_left or (_CHUNKED_PIECE if self.body_left is None else _PIECE)
            piece, self._held = self._held[:size], self._held[size:]
            self.parse(piece)
        self.flow.hold(bool(self._held))


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the headers that say where the body ends; none if there is no body."""
    kept = [(n, v) for n, v in headers if n == b"transfer-encoding" or (n == b"content-length" and int(v))]
    return b"".join(b"%b: %b\r\n" % header for header in kept)


def _parser_of_body(protocol: PacedProtocol, framing: bytes) -> Any:
    """Return a parser that goes on behind a head."""
    is_head = True

    def behind_head(call: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: None if is_head else call(*args)

    heads = ("on_message_begin", "on_url", "on_header", "on_headers_complete")
    calls = {name: behind_head(getattr(protocol, name)) for name in (*heads, "on_body", "on_message_complete")}
    parser = httptools.HttpRequestParser(SimpleNamespace(**calls))
    parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
    is_head = False
    return parser

"""What is known of the HTTP request under way: its id, and the figures that its line in the access log ends with.

A context variable carries it, so that whatever runs for a request can add to it and logs can name it.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.observe.tracing import RequestTrace

_VALID_ID = re.compile(rb"[A-Za-z0-9._:+/=-]{1,128}")  # nothing that could forge a line of a log


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are time.monotonic's seconds.

    Attributes:
        request_id: the client's X-Request-ID if it is well formed, else drawn here.
        ttft: seconds to the first token; None before it.
        finish_reasons: of its choices.
        trace_id: of the trace that it belongs to, in 32 hex digits; empty where it belongs to none.
        span_id: of its own span, if there is one. trace is what adds to it.
    """

    request_id: str
    started: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft: float | None = None
    finish_reasons: set[str] = field(default_factory=set)
    trace_id: str = ""
    span_id: str = ""
    trace: RequestTrace | None = None


_TRACEPARENT = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
_MAX_IN_ENGINE = 64  # characters of an id that each token's message carries
_NUMBERS = itertools.count(1)
_CURRENT: ContextVar[RequestRecord | None] = ContextVar("request", default=None)


def begin(client_id: bytes | None, traceparent: bytes | None = None) -> RequestRecord:
    """Return the record of a request that begins here; `client_id` is what it calls itself, `traceparent` its trace."""
    record = RequestRecord(client_id.decode() if client_id and _VALID_ID.fullmatch(client_id) else draw_id())
    if traceparent and (found := _TRACEPARENT.fullmatch(traceparent)):
        record.trace_id = found[1].decode()
    _CURRENT.set(record)
    return record


def draw_id() -> str:
    """Return a new id."""
    return f"req-{random.getrandbits(128):032x}"  # nothing secret: it need not be hard to guess


def engine_id() -> str:
    """Return an id for what the engine is asked now: the request's, so that its log and ours meet, and a number."""
    record = _CURRENT.get()
    return f"{record.request_id[:_MAX_IN_ENGINE] if record is not None else 'line'}.{next(_NUMBERS)}"


def current() -> RequestRecord | None:
    """Return the record of the request that this code runs for, if it does for one."""
    return _CURRENT.get()


class RequestIdFilter(logging.Filter):
    """Marks the lines that are logged while a request is answered with its ids (engine.logs writes them)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging for each line."""
        if (request := _CURRENT.get()) is not None:
            record.request_id, record.trace_id = request.request_id, request.trace_id
            record.span_id = request.span_id
        return True

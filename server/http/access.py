"""The outermost layer of the app: each request gets an id, is counted by route and status, and leaves a line in a log.

The line has no prompt, no query string and no key: who, what, with which status, how many tokens, how long.
Costs: some ten microseconds a request, most of them for the line; one plain call and an addition for each chunk.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from server.http.request_record import RequestRecord, begin, draw_id
from server.observe.http_metrics import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.observe.http_metrics import HttpMetrics
    from server.observe.tracing import Tracing

logger = logging.getLogger(__name__)

QUIET_ROUTES = frozenset(  # polled, or parts of a page
    {"/health", "/livez", "/readyz", "/startupz", "/metrics", "/ping", "/load", "/page/{name}", "/docs/{name}"}
)
LEFT = 499  # nginx's status for a client that left before its answer began
_MAX_REFUSALS = 20  # lines a second; further ones are counted, so that a flood does not fill a disk
_MAX_PATH = 100  # characters of a path that no route has


class AccessLog:
    """Writes one line a request, at info; at debug for `QUIET_ROUTES`. Refusals are limited."""

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._second = self._num_refusals = self._num_dropped = 0

    def write(self, record: RequestRecord, client: str, key_name: str, what: str, status: int, *, quiet: bool) -> None:
        """Log an answer. `what` is the method and route."""
        level = logging.DEBUG if quiet else logging.INFO
        if not self._is_on or not logger.isEnabledFor(level) or (status >= 400 and not self._take_refusal()):
            return
        seconds, generated = time.monotonic() - record.started, ""
        fields: dict[str, Any] = {"message": f"{what} {status}", "client": client, "key": key_name, "request": what}
        fields |= {"request_id": record.request_id, "status": status, "seconds": round(seconds, 6)}
        if record.prompt_tokens:
            ttft = "-" if record.ttft is None else f"{record.ttft:.3f}s"
            reasons = ",".join(sorted(record.finish_reasons)) or "-"
            generated = f" prompt={record.prompt_tokens} output={record.output_tokens} ttft={ttft} finish={reasons}"
            fields |= {"prompt_tokens": record.prompt_tokens, "output_tokens": record.output_tokens}
            fields |= {"ttft_seconds": record.ttft, "finish_reasons": sorted(record.finish_reasons)}
        if record.trace_id:
            generated += f" trace={record.trace_id}"
        form, extra = '%s %s key=%s "%s" %d total=%.3fs%s', {"names_request": True, "fields": fields}
        logger.log(level, form, record.request_id, client, key_name, what, status, seconds, generated, extra=extra)

    def _take_refusal(self) -> bool:
        """Whether one more refusal may be logged in this second."""
        second = int(time.monotonic())
        if second != self._second:
            if self._num_dropped:
                dropped = "%d more refusals in a second were not logged"
                logger.warning(dropped, self._num_dropped, extra={"names_request": True})
            self._second, self._num_refusals, self._num_dropped = second, 0, 0
        self._num_refusals += 1
        self._num_dropped += self._num_refusals > _MAX_REFUSALS
        return self._num_refusals <= _MAX_REFUSALS


class Access:
    """Counts and logs the answers of one app."""

    def __init__(
        self, metrics: HttpMetrics, log: AccessLog, paths: Iterable[str], tracing: Tracing | None = None
    ) -> None:
        """`paths` are those of the app's routes."""
        self.metrics, self._log, self._paths, self._tracing = metrics, log, frozenset(paths), tracing

    def begin(self, scope: Scope, record: RequestRecord) -> None:
        """Begin the span of a request, if there are traces."""
        if self._tracing is not None and scope["path"] not in QUIET_ROUTES:
            self._tracing.begin(scope, record)

    def end(self, scope: Scope, answer: _Answer) -> None:
        """Count and log an answer that has ended."""
        record, method, status = answer.record, scope["method"], answer.status or LEFT
        route, client = self._route(scope), scope.get("client")
        seconds = time.monotonic() - record.started
        self.metrics.answered(route, method, status, (seconds, answer.bytes_in, answer.bytes_out))
        what = _printable(scope["path"][:_MAX_PATH]) if route == UNKNOWN else route
        caller, is_quiet = scope.get("caller"), route in QUIET_ROUTES
        address, key_name = client[0] if client else "-", caller.key_name if caller is not None else "-"
        self._log.write(record, address, key_name, f"{method} {what}", status, quiet=is_quiet)
        if record.trace is not None and not is_quiet:
            record.trace.end(f"{method} {route}", route, status, record, address, key_name)

    def refused(self, status: int, client: str, num_bytes: int) -> None:
        """Count and log an answer to what never was a whole request: server.http.connections gave it."""
        self.metrics.answered(UNKNOWN, UNKNOWN, status, (0.0, 0, num_bytes))
        self._log.write(RequestRecord(draw_id()), client, "-", "-", status, quiet=False)

    def _route(self, scope: Scope) -> str:
        """The template of the route; for what was answered before it was routed, its path if a route has just this."""
        if (route := scope.get("route")) is not None:
            path: str = route.path
            return path
        return scope["path"] if scope["path"] in self._paths else UNKNOWN


def _printable(path: str) -> str:
    """A path as it may stand between quotes in a line."""
    return path.encode("unicode_escape").decode().replace('"', r"\x22")


class AccessMiddleware:
    """Pure ASGI: nothing is buffered."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].endswith("/"):  # /v1/models/ is served as /v1/models, rather than redirected
            scope["path"] = scope["path"].removesuffix("/") or "/"
        answer = _Answer(scope, receive, send)
        self._access.begin(scope, answer.record)
        self._access.metrics.num_in_flight += 1
        try:
            await self._app(scope, answer.receive if answer.counts_body else receive, answer.send)
        except Exception:
            answer.status = answer.status or 500  # which the layer above answers
            raise
        finally:
            self._access.metrics.num_in_flight -= 1
            self._access.end(scope, answer)


class _Answer:
    """One answer as it passes: its status and sizes; headers with the request's id are added."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status = self.bytes_in = self.bytes_out = 0
        self.counts_body, client_id, traceparent = True, None, None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                client_id = value
            elif name == b"traceparent":
                traceparent = value
            elif name == b"content-length" and value.isdigit():
                self.bytes_in, self.counts_body = int(value), False
        self.record = begin(client_id, traceparent)
        request_id = self.record.request_id.encode()
        self._headers = [(b"x-request-id", request_id), (b"request-id", request_id)]  # OpenAI's and Anthropic's names

    def send(self, message: Message) -> Awaitable[None]:
        """Called for each part of the answer: not a coroutine itself, since there is one call for each token."""
        if message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
        elif message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers]
        return self._send(message)

    async def receive(self) -> Message:
        """Called for a body whose length was not announced."""
        message = await self._receive()
        self.bytes_in += len(message.get("body", b""))
        return message

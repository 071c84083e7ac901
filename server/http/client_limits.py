"""Limits of each client, applied before a body is read; docs/operations.md says what they are.

A client is a key, or an address where no keys are set. Requests are what is POSTed to routes that want a key: reading
is not limited. What the lines of batches take is not counted (server.batches has limits of its own).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from engine.errors import RateLimitError
from server.http.errors import error_response, refused
from server.http.gate import Access
from server.http.proxies import client_of
from server.http.request_record import current
from server.rate_limits import NO_KEY, Clients

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.observe.metrics import Metrics
    from server.rate_limits import Allowance


def reserve_tokens(scope: Scope, num_tokens: int) -> None:
    """Take so many tokens, an estimate, of what the client may use in a minute.

    Raises:
        RateLimitError: it has not so many left.
    """
    if (allowance := scope.get("allowance")) is not None:
        allowance.reserve(num_tokens)


class ClientLimitsMiddleware:
    """Refuses what exceeds a client's limits, and tells the client what it has left. Nothing is buffered."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_connections: int | None) -> None:
        """`max_connections` is of each address behind a trusted proxy, whose own connections say nothing of clients."""
        self._app, self._metrics, self._max_connections = app, metrics, max_connections
        self._clients = Clients(metrics.requests.count_limited)
        self._num_proxied: Counter[str] = Counter()  # requests under way, by whom they come from

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["access"] is not Access.KEY:
            await self._app(scope, receive, send)
        elif self._max_connections is None or not scope.get("is_proxied"):
            await self._limited(scope, receive, send)
        else:
            await self._proxied(self._max_connections, scope, receive, send)

    async def _proxied(self, most: int, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_of(scope["client"][0])
        if self._num_proxied[client] >= most:
            self._metrics.requests.count_refused("rate_limited")
            message = f"This address has {most} requests under way, the most that one may have; try again."
            response = error_response(429, message, {"Retry-After": "1"}, path=scope["path"])
            await response(scope, receive, send)
            return
        self._num_proxied[client] += 1
        try:
            await self._limited(scope, receive, send)
        finally:
            self._num_proxied[client] -= 1
            if not self._num_proxied[client]:
                del self._num_proxied[client]

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope["caller"]
        if not caller.limits:
            await self._app(scope, receive, send)
            return
        has_key = caller.key_name != NO_KEY
        address = scope["client"][0] if scope.get("client") else ""
        identity = caller.tenant if has_key else client_of(address)
        allowance = self._clients.allowance(identity, caller.key_name, caller.limits)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *allowance.headers()]
            await send(message)

        if scope["method"] != "POST":
            await self._app(scope, receive, send_with_headers)
        else:
            await self._counted(allowance, scope, receive, send_with_headers)

    async def _counted(self, allowance: Allowance, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            allowance.begin()
        except RateLimitError as error:
            self._metrics.requests.count_refused("rate_limited")
            await refused(scope["path"], error)(scope, receive, send)
            return
        scope["allowance"], record = allowance, current()
        try:
            await self._app(scope, receive, send)
        finally:
            allowance.end(record.prompt_tokens + record.output_tokens if record is not None else 0)

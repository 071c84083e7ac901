"""Which requests reach a route: every route has a declared class of access, and what is not declared is not there.

A route that is missing in `ROUTES` answers 404, whatever the app has; a test names it. The classes are looked up by the
path that is routed, before a body is read: a dictionary's look-up for most paths.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from starlette.routing import compile_path

from server.http.api_keys import ApiKeys, Caller
from server.http.errors import error_response, unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.http.hosts import TrustedHosts
    from server.observe.metrics import Metrics


class Access(enum.Enum):
    """Who may ask a route."""

    PROBE = "everyone, under any host's name"
    PAGE = "everyone: it says nothing of this server and its requests"
    METRICS = "everyone; with --admin-port, whoever reaches that port"
    KEY = "whoever has a key, or everyone if no keys are set"
    ADMIN = "whoever reaches --admin-port"


ROUTES = {
    **dict.fromkeys(("/health", "/ping", "/livez", "/readyz", "/startupz", "/version"), Access.PROBE),
    **dict.fromkeys(("/", "/page/{name}", "/docs", "/docs/{name}", "/openapi.json"), Access.PAGE),
    **dict.fromkeys(("/metrics", "/load"), Access.METRICS),
    "/debug/state": Access.ADMIN,
    **dict.fromkeys(
        (
            *("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"),
            *("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/{response_id}"),
            *("/v1/responses/{response_id}/cancel", "/v1/responses/{response_id}/input_items"),
            *("/v1/embeddings", "/v2/embed", "/v1/classify", "/classify", "/v1/score", "/score"),
            "/v1/moderations",
            *("/v1/rerank", "/v2/rerank", "/rerank"),
            *("/tokenize", "/detokenize", "/tokenizer_info"),
            *("/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content"),
            *("/v1/batches", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel"),
            *("/v1/models", "/v1/models/{name:path}"),
        ),
        Access.KEY,
    ),
}
MAX_PARAMETERS = 64  # of a query: they are parsed several times, and all of them are told of where one is not known
_OPEN = frozenset({Access.PROBE, Access.PAGE, Access.METRICS})
OPEN_PATHS = frozenset(path for path, access in ROUTES.items() if access in _OPEN)
_ON_ADMIN_PORT = frozenset({Access.PROBE, Access.METRICS, Access.ADMIN})


class AccessTable:
    """The class of access of each path."""

    def __init__(self, routes: Mapping[str, Access]) -> None:
        self._exact = {path: access for path, access in routes.items() if "{" not in path}
        self._patterns: list[tuple[re.Pattern[str], Access]] = [
            (compile_path(path)[0], access) for path, access in routes.items() if "{" in path
        ]

    def __getitem__(self, path: str) -> Access | None:
        """Return the class of a path; None if no declared route has it."""
        if (access := self._exact.get(path)) is not None:
            return access
        return next((access for pattern, access in self._patterns if pattern.match(path)), None)


class GateMiddleware:
    """Sets the scope's `caller` and `access`, or refuses. Pure ASGI: nothing is buffered."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        metrics: Metrics,
        hosts: TrustedHosts,
        admin_hosts: TrustedHosts,
        admin_port: int | None,
    ) -> None:
        """With an `admin_port`, what is for administrators is there alone, and no key is asked for there."""
        self._app, self._keys, self._metrics = app, keys, metrics
        self._hosts, self._admin_hosts, self._admin_port = hosts, admin_hosts, admin_port
        self._table = AccessTable(ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, is_admin = scope["path"], self._is_admin(scope)
            access = self._table[path]
            hosts = self._admin_hosts if is_admin else self._hosts
            if access is not Access.PROBE and (fault := hosts.fault(scope["headers"])) is not None:
                self._metrics.requests.count_refused("untrusted_host")
                await error_response(400, fault, path=path)(scope, receive, send)
                return
            if scope["query_string"].count(b"&") >= MAX_PARAMETERS:
                message = f"The query has more than {MAX_PARAMETERS} parameters, the most that is taken."
                self._metrics.requests.count_refused("invalid")
                await error_response(400, message, path=path)(scope, receive, send)
                return
            caller = Caller() if is_admin else self._keys.identify(scope["headers"])
            if caller is None and access not in _OPEN:
                self._metrics.requests.count_refused("unauthorized")
                await unauthorized(path)(scope, receive, send)
                return
            if not self._is_there(access, is_admin=is_admin):
                await error_response(404, "Not Found", path=path)(scope, receive, send)
                return
            scope["caller"], scope["access"] = caller or Caller(), access
        await self._app(scope, receive, send)

    def _is_admin(self, scope: Scope) -> bool:
        """Whether the request came to the admin port."""
        server = scope.get("server")
        return self._admin_port is not None and server is not None and server[1] == self._admin_port

    def _is_there(self, access: Access | None, *, is_admin: bool) -> bool:
        if is_admin:
            return access in _ON_ADMIN_PORT
        return (
            access is not None and access is not Access.ADMIN and (access is not Access.METRICS or not self._admin_port)
        )

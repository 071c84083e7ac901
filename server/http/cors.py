"""Cross-origin requests: pages of which other sites may ask this server (--cors-origins); none unless told otherwise.

A key is sent in a header that pages set themselves, so browsers' own credentials (cookies) are never allowed.
Browsers send simple requests without asking first, and bodies are read as JSON whatever their content type; so what
other sites' pages send is refused here too. Programs that are no browsers say nothing of a site, and are let in.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.middleware.cors import CORSMiddleware
    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.observe.metrics import Metrics

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d{1,5})?")  # as browsers write it
_LOCAL = re.compile(r"https?://([a-z0-9.-]+\.)?(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?")  # a program's here
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # which change and compute nothing
_EXPOSED = ("Retry-After", "X-Request-ID")  # headers that pages may read beside the usual ones


def parse_origins(text: str | None) -> list[str]:
    """Return the origins of --cors-origins, between commas or spaces.

    Raises:
        ConfigError: one of them is no origin.
    """
    origins = re.split(r"[,\s]+", text.strip(", ")) if text else []
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            message = f"--cors-origins has {origin!r}; an origin is * or SCHEME://HOST[:PORT] in small letters, no path"
            raise ConfigError(message)
    return origins


def allow_origins(app: ASGIApp, origins: list[str]) -> CORSMiddleware:
    """Return the app, answering preflights itself and putting the headers on every answer, errors and streams too."""
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED)


def headers_for(origins: list[str], request_headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of an answer that is given without the app."""
    origin = next((value.decode("latin-1") for name, value in request_headers if name == b"origin"), None)
    if origin is None or not ("*" in origins or origin in origins):
        return {}
    allowed = {"Access-Control-Allow-Origin": "*"} if "*" in origins else {"Access-Control-Allow-Origin": origin}
    return {**allowed, "Vary": "Origin", "Access-Control-Expose-Headers": ", ".join(_EXPOSED)}


def is_of_another_site(origins: list[str], request_headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser sends this for a page of a site that is not let in.

    Pages of programs on the browser's own machine, and of apps and extensions (`app://`, `file://`), are no sites.
    """
    found: dict[bytes, str | None] = {b"origin": None, b"host": None, b"sec-fetch-site": None}
    for name, value in request_headers:
        if name in found:
            found[name] = value.decode("latin-1")
    origin, host, relation = found.values()
    if relation in ("same-origin", "none"):
        return False
    if origin is None:
        return relation is not None
    is_site = origin == "null" or origin.startswith(("http://", "https://"))  # null: a page that hides its site
    is_own = origin.partition("://")[2] == host
    return is_site and not is_own and origin not in origins and _LOCAL.fullmatch(origin) is None


class OtherSitesMiddleware:
    """Answers 403 to what pages of other sites ask for by a method that is not safe. Pure ASGI: nothing is buffered."""

    def __init__(self, app: ASGIApp, origins: list[str], metrics: Metrics) -> None:
        self._app, self._origins, self._metrics = app, origins, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] not in _SAFE_METHODS
            and is_of_another_site(self._origins, scope["headers"])
        ):
            from server.http.errors import error_response  # the web stack, which is there by now

            self._metrics.requests.count_refused("unauthorized")
            message = "Pages of other sites may not ask this server; --cors-origins SITE lets them in."
            await error_response(403, message, path=scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)

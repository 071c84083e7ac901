"""Cross-origin requests: pages of which other sites may ask this server (--cors-origins); none unless told otherwise.

A key is sent in a header that pages set themselves, so browsers' own credentials (cookies) are never allowed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.middleware.cors import CORSMiddleware
    from starlette.types import ASGIApp

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d{1,5})?")  # as browsers write it
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

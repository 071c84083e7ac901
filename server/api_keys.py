"""API keys: which requests are let in, and which tenant a request counts for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PUBLIC_PATHS = frozenset({"/health", "/metrics"})  # for probes and Prometheus; other paths need a key if keys are set


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: a hash of the API key (empty without a key), and the weight of the key's share."""

    tenant: bytes = b""
    weight: float = 1.0


class ApiKeys:
    """The hashes of the keys that are let in. If no key is set, everyone is let in, and a key only names the tenant."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._weights = {_hash(key.encode()): weight for key, weight in weights.items()}

    @classmethod
    def load(cls, key: str | None, path: str | None) -> ApiKeys:
        """Read keys from --api-key, and from the lines `KEY [WEIGHT]` of the file --api-keys.

        Raises:
            ConfigError: the file cannot be read, or a line is not of that form.
        """
        weights = {} if key is None else {key: 1.0}
        if path is not None:
            try:
                lines = Path(path).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--api-keys {path} cannot be read: {error}") from None
            for number, line in enumerate(lines, 1):
                words = line.split()
                if not words or words[0].startswith("#"):
                    continue
                try:
                    weight = float(words[1]) if len(words) > 1 else 1.0
                except ValueError:
                    weight = 0.0
                if len(words) > 2 or not 0 < weight < 1e6:
                    raise ConfigError(f"--api-keys {path}, line {number}: expected KEY, or KEY and a weight above 0")
                weights[words[0]] = weight
            if not weights:
                raise ConfigError(f"--api-keys {path} has no key in it")
        return cls(weights)

    def identify(self, authorization: bytes | None) -> Caller | None:
        """Return who sends this header; None if the key is not let in. Comparing hashes leaks nothing through time."""
        scheme, _, key = (authorization or b"").partition(b" ")
        tenant = _hash(key.strip()) if scheme.lower() == b"bearer" and key.strip() else b""
        if not self._weights:
            return Caller(tenant)
        weight = self._weights.get(tenant)
        return None if weight is None else Caller(tenant, weight)


class ApiKeyMiddleware:
    """Sets the scope's `caller`, or answers 401. Pure ASGI: the path is the one that is routed; nothing is buffered."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [value for name, value in scope["headers"] if name == b"authorization"]
            caller = self._keys.identify(headers[0] if len(headers) == 1 else None)
            if caller is None and scope["path"] not in PUBLIC_PATHS:
                from server.errors import unauthorized  # the web stack, which is there by now

                await unauthorized()(scope, receive, send)
                return
            scope["caller"] = caller or Caller()
        await self._app(scope, receive, send)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

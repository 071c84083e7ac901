"""API keys: which requests are let in, and which tenant a request counts for."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.observe.metrics import Metrics

# For probes and Prometheus; and the page and the API's reference, which say nothing of this server and its requests.
# Other paths need a key if keys are set.
PUBLIC_PATHS = frozenset(
    {"/health", "/ping", "/livez", "/readyz", "/startupz", "/metrics", "/load", "/version"}
    | {"/", "/docs", "/openapi.json"}
)
PUBLIC_FOLDERS = ("/page/", "/docs/")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")  # what may name a key in metrics; most keys are longer


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        tenant: a hash of the API key; empty without a key.
        weight: the key's share under --policy fair.
        key_name: what metrics call the key; "none" unless keys are set, so that there are no more names than keys.
    """

    tenant: bytes = b""
    weight: float = 1.0
    key_name: str = "none"

    @classmethod
    def of_key(cls, key: str, weight: float, name: str) -> Caller:
        """Return who sends a request with this key."""
        return cls(_hash(key.encode()), weight, name)


class ApiKeys:
    """The hashes of the keys that are let in. If no key is set, everyone is let in, and a key only names the tenant."""

    def __init__(self, callers: Iterable[Caller] = ()) -> None:
        self._callers = {caller.tenant: caller for caller in callers}

    @classmethod
    def load(cls, key: str | None, path: str | None) -> ApiKeys:
        """Read keys from --api-key, and from the lines `KEY [WEIGHT] [NAME]` of the file --api-keys.

        A key without a name is called by its line, as in `key-3`; the key of --api-key is called `api-key`.

        Raises:
            ConfigError: the file cannot be read, or a line is not of that form.
        """
        callers = [] if key is None else [Caller.of_key(key, 1.0, "api-key")]
        if path is not None:
            try:
                lines = Path(path).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--api-keys {path} cannot be read: {error}") from None
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    callers.append(_parse_line(line, f"--api-keys {path}, line {number}", f"key-{number}"))
            if not callers:
                raise ConfigError(f"--api-keys {path} has no key in it")
        return cls(callers)

    @property
    def are_set(self) -> bool:
        """Whether a key is needed."""
        return bool(self._callers)

    @property
    def names(self) -> list[str]:
        """What metrics call the callers that are let in."""
        return [caller.key_name for caller in self._callers.values()] or [Caller().key_name]

    def identify(self, authorization: bytes | None) -> Caller | None:
        """Return who sends this header; None if the key is not let in. Comparing hashes leaks nothing through time."""
        scheme, _, key = (authorization or b"").partition(b" ")
        tenant = _hash(key.strip()) if scheme.lower() == b"bearer" and key.strip() else b""
        return self._callers.get(tenant) if self._callers else Caller(tenant)


class ApiKeyMiddleware:
    """Sets the scope's `caller`, or answers 401. Pure ASGI: the path is the one that is routed; nothing is buffered."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, metrics: Metrics) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            caller = self._keys.identify(_authorization(scope["headers"]))
            path = scope["path"]
            if caller is None and path not in PUBLIC_PATHS and not path.startswith(PUBLIC_FOLDERS):
                from server.http.errors import unauthorized  # the web stack, which is there by now

                self._metrics.count_refused("unauthorized")
                await unauthorized(scope["path"])(scope, receive, send)
                return
            scope["caller"] = caller or Caller()
        await self._app(scope, receive, send)


def _authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the Authorization header, or what stands for it: Anthropic's clients send the key as x-api-key."""
    found: dict[bytes, list[bytes]] = {b"authorization": [], b"x-api-key": []}
    for name, value in headers:
        found.get(name, []).append(value)
    values = found[b"authorization"] or [b"Bearer " + key for key in found[b"x-api-key"]]
    return values[0] if len(values) == 1 else None


def _parse_line(line: str, where: str, name: str) -> Caller:
    key, *words = line.split()
    weight = 1.0
    if words:
        try:
            weight = float(words[0])
        except ValueError:
            pass
        else:
            words.pop(0)
    if words:
        name = words.pop(0)
    if words or not 0 < weight < 1e6 or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: expected KEY [WEIGHT] [NAME]; a weight is a number above 0, a name begins with a letter and has "
            "at most 32 of A-Z a-z 0-9 _ . -"
        )
    return Caller.of_key(key, weight, name)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

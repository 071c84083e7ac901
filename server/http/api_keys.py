"""API keys: which requests are let in, and which tenant and limits a request counts for. Owns no route's class."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from server.rate_limits import NO_KEY, NO_LIMITS, RateLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")  # what may name a key in metrics; most keys are longer
_LIMITS = {
    "requests": "max_requests",
    "requests-per-minute": "requests_per_minute",
    "tokens-per-minute": "tokens_per_minute",
}
_MAX_LIMIT = 10**12
_MAX_FILE = 8 << 20  # bytes; a hundred thousand keys


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        tenant: a hash of the API key; empty without a key.
        weight: the key's share under --policy fair.
        key_name: what metrics call the key; NO_KEY unless keys are set, so that there are no more names than keys.
        limits: of the key; without keys, of each client's address.
    """

    tenant: bytes = b""
    weight: float = 1.0
    key_name: str = NO_KEY
    limits: RateLimits = NO_LIMITS

    @classmethod
    def of_key(cls, key: str, weight: float, name: str, limits: RateLimits | None = None) -> Caller:
        """Return who sends a request with this key."""
        return cls(_hash(key.encode()), weight, name, limits or NO_LIMITS)


class ApiKeys:
    """The hashes of the keys that are let in. If no key is set, everyone is let in, and a key only names the tenant."""

    def __init__(self, callers: Iterable[Caller] = (), *, limits: RateLimits | None = None) -> None:
        """`limits` are each caller's where no keys are set."""
        self._callers = {caller.tenant: caller for caller in callers}
        self._limits = limits or NO_LIMITS

    @classmethod
    def load(cls, key: str | None, path: str | None, limits: RateLimits | None = None) -> ApiKeys:
        """Read keys from --api-key, and from the lines `KEY [WEIGHT] [NAME] [LIMIT=N ...]` of the file --api-keys.

        A key without a name is called by its line, as in `key-3`; the key of --api-key is called `api-key`. `limits`
        are those of keys whose line says nothing else.

        Raises:
            ConfigError: the file cannot be read, or a line is not of that form.
        """
        limits = limits or NO_LIMITS
        callers = [] if key is None else [Caller.of_key(key, 1.0, "api-key", limits)]
        if path is not None:
            lines = _read(path)
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    where = f"--api-keys {path}, line {number}"
                    callers.append(_parse_line(line, where, f"key-{number}", limits))
            if not callers:
                raise ConfigError(f"--api-keys {path} has no key in it")
        return cls(callers, limits=limits)

    def take_over(self, other: ApiKeys) -> tuple[int, int]:
        """Let in the keys of `other` alone, from the next request on; how many were added and removed."""
        before, self._callers = self._callers, other._callers
        return len(self._callers.keys() - before.keys()), len(before.keys() - self._callers.keys())

    @property
    def are_set(self) -> bool:
        """Whether a key is needed."""
        return bool(self._callers)

    @property
    def names(self) -> list[str]:
        """What metrics call the callers that are let in."""
        return [caller.key_name for caller in self._callers.values()] or [Caller().key_name]

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller | None:
        """Return who sends these headers; None if no key in them is let in.

        Only hashes of keys are looked up, so that the time which that takes says nothing of any key.
        """
        scheme, _, key = (_authorization(headers) or b"").partition(b" ")
        tenant = _hash(key.strip()) if scheme.lower() == b"bearer" and key.strip() else b""
        return self._callers.get(tenant) if self._callers else Caller(tenant, limits=self._limits)


def _authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the Authorization header, or what stands for it: Anthropic's clients send the key as x-api-key."""
    found: dict[bytes, list[bytes]] = {b"authorization": [], b"x-api-key": []}
    for name, value in headers:
        if name in found:
            found[name].append(value)
    values = found[b"authorization"] or [b"Bearer " + key for key in found[b"x-api-key"]]
    return values[0] if len(values) == 1 else None


def _read(path: str) -> list[str]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"  # whose error quotes the text
        raise ConfigError(f"--api-keys {path} cannot be read: {reason}") from None
    if len(data) > _MAX_FILE:
        raise ConfigError(f"--api-keys {path} has more than {_MAX_FILE >> 20} MiB")
    return text.splitlines()


def _parse_line(line: str, where: str, name: str, limits: RateLimits) -> Caller:
    key, *words = line.split()
    weight, own = 1.0, {}
    if not key.isprintable():  # a damaged file, such as one cut in the middle of a write
        raise ConfigError(f"{where}: the key has control characters, which no header can carry")
    while words and "=" in words[-1]:
        limit, _, value = words.pop().partition("=")
        if limit not in _LIMITS or _LIMITS[limit] in own or not _is_limit(value):
            known = ", ".join(f"{name}=N" for name in _LIMITS)
            raise ConfigError(f"{where}: expected limits as in {known}; N is a whole number above 0, or none")
        own[_LIMITS[limit]] = None if value == "none" else int(value)
    if words:
        try:
            weight = float(words[0])
        except ValueError:
            pass
        else:
            words.pop(0)
    if words:
        name = words.pop(0)
    if words or not 0 < weight < 1e6 or not _NAME.fullmatch(name) or name == NO_KEY:
        raise ConfigError(
            f"{where}: expected KEY [WEIGHT] [NAME] [LIMIT=N ...]; a weight is a number above 0, a name begins with a "
            f"letter, has at most 32 of A-Z a-z 0-9 _ . - and is not '{NO_KEY}'"
        )
    return Caller.of_key(key, weight, name, replace(limits, **own))


def _is_limit(value: str) -> bool:
    return value == "none" or (value.isascii() and value.isdecimal() and 0 < int(value[:20]) <= _MAX_LIMIT)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

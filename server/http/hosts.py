"""--trusted-hosts: by which names this server may be asked, so that no page can reach it by a name of its own.

A page of evil.example may have that name point at 127.0.0.1: the visitor's browser then takes this server for a part of
the page (DNS rebinding). The header Host still says evil.example. Addresses, and names that nobody can have in the
public DNS, cannot be used so.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{0,5})?")
_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_PRIVATE = ("localhost", "internal")  # top-level domains that the public DNS will never have
_SHOWN = 100  # characters of a host in an error


@dataclass(frozen=True)
class TrustedHosts:
    """Names that may stand in the header Host.

    Attributes:
        names: without ports; None if any is good.
        suffixes: `.example.com` stands for all names that end so.
        private: whether addresses, and names that are not in the public DNS, are good too.
    """

    names: frozenset[str] | None = None
    suffixes: tuple[str, ...] = ()
    private: bool = False

    @classmethod
    def resolve(cls, text: str | None, host: str, *, has_keys: bool) -> Self:
        """Return what --trusted-hosts says. By default any name is good, unless this machine alone may connect.

        With keys, a page that reaches the server can do nothing there.

        Raises:
            ConfigError: a name is none.
        """
        if text is None:
            return cls(frozenset(), private=True) if is_loopback(host) and not has_keys else cls()
        names = [name.lower() for name in re.split(r"[,\s]+", text.strip(", ")) if name]
        for name in names:
            if name != "*" and not _NAME.fullmatch(name) and not _is_address(name.strip("[]")):
                message = f"--trusted-hosts has {name!r}; expected names as in api.example.com or *.example.com, or *"
                raise ConfigError(message)
        if "*" in names:
            return cls()
        suffixes = tuple(name.removeprefix("*") for name in names if name.startswith("*."))
        exact = {name.strip("[]") for name in names if not name.startswith("*.")}
        return cls(frozenset(exact | {"localhost", "127.0.0.1", "::1", host.lower()}), suffixes)

    def fault(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return what is wrong with a request's header Host; None if nothing is. Browsers always send one."""
        values = [value for name, value in headers if name == b"host"]
        if len(values) > 1:
            return "The request has several headers Host."
        if not values or self.names is None or self._trusts(values[0].decode("latin-1").lower()):
            return None
        shown = ascii(values[0].decode("latin-1"))[1:-1][:_SHOWN]
        return f"The server is not called '{shown}', as the header Host says; --trusted-hosts lets names in."

    def _trusts(self, value: str) -> bool:
        assert self.names is not None
        if (found := _HOST.fullmatch(value)) is None:
            return False
        host = found[1].strip("[]").rstrip(".")
        return host in self.names or host.endswith(self.suffixes) or (self.private and _is_private(host))


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_private(host: str) -> bool:
    """Whether a host is an address, or a name that is not in the public DNS: one without dots, or of `_PRIVATE`."""
    return "." not in host or host.rpartition(".")[2] in _PRIVATE or _is_address(host)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

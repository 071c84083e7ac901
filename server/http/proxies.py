"""--trusted-proxies: whose X-Forwarded-For is believed, so that logs and limits see clients and not the proxy.

Anyone can send that header. Each proxy adds the address that asked it at the end, so the list is read from there, as
far as those who added to it are trusted.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CLIENT_BITS = 64  # of an IPv6 address, the part that a provider gives to one client
_MAX_PROXIES = 32  # in a row


class TrustedProxies:
    """Addresses and networks of proxies."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self.networks = tuple(networks)
        self._trusts = lru_cache(4096)(self._is_in_networks)  # there are few proxies, and they ask all the time

    @classmethod
    def parse(cls, text: str | None) -> TrustedProxies:
        """Return the proxies of --trusted-proxies, between commas or spaces.

        Raises:
            ConfigError: one is no address and no network, or is everyone.
        """
        networks = []
        for part in re.split(r"[,\s]+", text.strip(", ")) if text else []:
            try:
                network = ipaddress.ip_network(part)
            except ValueError:
                message = f"--trusted-proxies has {part!r}; expected addresses and networks: 10.0.0.7, 10.1.0.0/16, ::1"
                raise ConfigError(message) from None
            if network.prefixlen == 0:
                raise ConfigError(f"--trusted-proxies has {part}: then everyone could say who they are")
            networks.append(network)
        return cls(networks)

    def __bool__(self) -> bool:
        return bool(self.networks)

    def __contains__(self, address: str) -> bool:
        return bool(self.networks) and self._trusts(address)

    def client(self, peer: str, forwarded: Sequence[bytes]) -> str:
        """Return who asked the proxies, the nearest of which is `peer`. What is no address ends the list."""
        client = peer
        entries = b",".join(forwarded).decode("latin-1").split(",")
        for entry in entries[: -_MAX_PROXIES - 1 : -1]:
            if (address := _parse(entry.strip())) is None:
                break
            client = str(address)
            if client not in self:
                break
        return client

    def _is_in_networks(self, text: str) -> bool:
        address = _parse(text)
        return address is not None and any(address in network for network in self.networks)


class ProxyMiddleware:
    """Sets the scope's `client` to who asked a trusted proxy, and `is_proxied`. Pure ASGI: nothing is buffered."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app, self._proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope.get("client")
        if scope["type"] == "http" and peer is not None and peer[0] in self._proxies:
            forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
            scope["client"], scope["is_proxied"] = (self._proxies.client(peer[0], forwarded), 0), True
        await self._app(scope, receive, send)


@lru_cache(4096)
def client_of(address: str) -> str:
    """Return whom an address belongs to: of IPv6 a network, since each client has billions of addresses in it."""
    parsed = _parse(address)
    if parsed is None or parsed.version == 4:
        return str(parsed or address)
    return str(ipaddress.ip_network((parsed, _CLIENT_BITS), strict=False))


def _parse(text: str) -> Address | None:
    """Return an address, with or without a port; one of IPv4 that is written as IPv6 is IPv4's."""
    host, _, port = text.rpartition(":")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif host and port.isdecimal() and ":" not in host:
        text = host
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address

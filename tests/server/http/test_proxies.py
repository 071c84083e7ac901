"""--trusted-proxies: whose word about a client's address is taken."""

from __future__ import annotations

import logging

import httpx
import pytest

from engine.errors import ConfigError
from server.config import ServerConfig
from server.http.proxies import TrustedProxies, client_of

PROXIES = TrustedProxies.parse("10.1.0.0/16, 192.0.2.7 2001:db8::/32")


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([b"203.0.113.9"], "203.0.113.9"),
        ([b"203.0.113.9:4711"], "203.0.113.9"),
        ([b"[2001:db9::1]:4711"], "2001:db9::1"),
        ([b"2001:DB9::1"], "2001:db9::1"),
        ([b"::ffff:203.0.113.9"], "203.0.113.9"),
        ([b"1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # what a client says of itself comes first
        ([b"1.1.1.1", b"203.0.113.9"], "203.0.113.9"),
        ([b"1.1.1.1,203.0.113.9, 10.1.2.3"], "203.0.113.9"),  # two proxies
        ([b"10.1.9.9, 10.1.2.3"], "10.1.9.9"),
        ([b"203.0.113.9, unknown"], "10.1.0.1"),
        ([b"1.1.1.1, \xff\x00\r, 10.1.2.3"], "10.1.2.3"),
        ([b""], "10.1.0.1"),
        ([], "10.1.0.1"),
        ([b"1.1.1.1," + b"10.1.2.3," * 5000 + b"10.1.2.4"], "10.1.2.3"),
    ],
)
def test_the_list_is_read_from_its_end(forwarded: list[bytes], client: str) -> None:
    assert PROXIES.client("10.1.0.1", forwarded) == client


@pytest.mark.parametrize("text", ["proxy", "10.0.0.0/33", "10.0.0.7/8", "*", "0.0.0.0/0", "::/0"])
def test_what_is_no_network_or_everyone_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--trusted-proxies has"):
        ServerConfig(trusted_proxies=text)


def test_a_client_of_ipv6_is_a_network() -> None:
    assert client_of("2001:db8:1:2:3::4") == client_of("2001:db8:1:2:ffff::") != client_of("2001:db8:1:3::")
    assert client_of("192.0.2.1") == client_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_of("") == ""


@pytest.mark.parametrize(("peer", "logged"), [("10.1.0.1", "203.0.113.9"), ("203.0.113.1", "203.0.113.1")])
async def test_the_log_has_the_client_that_a_trusted_proxy_names(
    serve, caplog: pytest.LogCaptureFixture, peer: str, logged: str
) -> None:
    api = await serve(config=ServerConfig(data_dir="memory", trusted_proxies="10.1.0.0/16"))
    transport = httpx.ASGITransport(api.app, client=(peer, 4711))
    caplog.set_level(logging.INFO, "server.http.access")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await http.get("/v1/models", headers={"X-Forwarded-For": "1.1.1.1, 203.0.113.9"})
    assert f" {logged} key=none " in caplog.text

"""--trusted-hosts: by which names a server may be asked."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError
from server.config import ServerConfig
from server.http.api_keys import ApiKeys, Caller
from server.http.hosts import TrustedHosts
from tests.server.conftest import COMPLETIONS, check_error

LOCAL = ("localhost", "LOCALHOST:8000", "a.localhost", "127.0.0.1:8000", "[::1]:8000", "192.168.1.2", "server:8000")
SITES = ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "evil.local", "evil.com.")
BROKEN = ("a/health", "", "a b", "a@b", "[::1", "a:8000:1", "a\u00e9.example", "localhost:999999")


def fault(hosts: TrustedHosts, *values: str) -> str | None:
    return hosts.fault([(b"host", value.encode("latin-1")) for value in values])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_no_site_can_be_the_name(host: str) -> None:
    hosts = TrustedHosts.resolve(None, host, has_keys=False)
    for value in LOCAL:
        assert fault(hosts, value) is None, value
    for value in (*SITES, *BROKEN):
        assert fault(hosts, value) is not None, value
    assert fault(hosts) is None  # no browser leaves it out
    assert fault(hosts, "host.docker.internal") is None


@pytest.mark.parametrize(
    ("host", "has_keys"), [("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("127.0.0.1", True)]
)
def test_elsewhere_and_with_keys_any_name_is_good(host: str, has_keys: bool) -> None:
    hosts = TrustedHosts.resolve(None, host, has_keys=has_keys)
    for value in (*LOCAL, *SITES, *BROKEN):
        assert fault(hosts, value) is None, value
    assert "several" in (fault(hosts, "a", "a") or "")


def test_names_that_are_set_are_the_only_ones() -> None:
    hosts = TrustedHosts.resolve("api.example.com, *.Example.org 10.0.0.7 [::7]", "0.0.0.0", has_keys=True)
    for value in ("api.example.com", "API.example.com.:443", "a.b.example.org", "10.0.0.7:80", "[::7]:80", "localhost"):
        assert fault(hosts, value) is None, value
    for value in (*SITES, "example.org", "xexample.org", "api.example.com.evil.example", "10.0.0.8", "server"):
        assert fault(hosts, value) is not None, value
    assert fault(TrustedHosts.resolve("*", "127.0.0.1", has_keys=False), "evil.example") is None


@pytest.mark.parametrize("text", ["http://a", "a/b", "a:80", "*.", "*a", "a b*"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--trusted-hosts has"):
        ServerConfig(trusted_hosts=text)


async def test_a_page_that_leads_its_name_here_gets_nothing_but_probes(serve) -> None:
    api = await serve()
    headers = {"Host": "evil.example:8000"}
    for path in ("/", "/v1/models", "/metrics", "/load", "/nothing"):
        error = check_error(await api.http.get(path, headers=headers), 400, type="invalid_request_error")
        assert "'evil.example:8000'" in error["message"]
        assert "--trusted-hosts" in error["message"]
    check_error(await api.http.post(COMPLETIONS, json={"prompt": "a"}, headers=headers), 400)
    for path in ("/health", "/livez", "/readyz", "/startupz", "/ping", "/version"):  # Kubernetes asks by any name
        assert (await api.http.get(path, headers=headers)).status_code == 200
    assert await api.metric("requests_refused_total", reason="untrusted_host") == 6


async def test_a_host_cannot_forge_what_is_said_of_it(serve) -> None:
    http = (await serve()).http
    error = check_error(await http.get("/load", headers=[("Host", b"a.b\x1b[31m'\xff" + b"x" * 1000)]), 400)
    assert "\\x1b" in error["message"]
    assert len(error["message"]) < 300


async def test_with_a_key_the_name_does_not_matter(serve) -> None:
    http = (await serve(keys=ApiKeys([Caller.of_key("sk-1", 1.0, "k")]))).http
    headers = {"Host": "api.example.com", "Authorization": "Bearer sk-1"}
    assert (await http.get("/v1/models", headers=headers)).status_code == 200

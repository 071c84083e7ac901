"""The real command with HTTPS, a file of keys, limits and an admin port; then what changes while it runs."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest
import trustme

from server.commands.child_server import free_port
from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CA = trustme.CA()
BODY = {"prompt": "a", "max_tokens": 4, "ignore_eos": True}


def write(path: Path, text: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(text)
    os.replace(new, path)


def issue(folder: Path, name: str) -> None:
    write(folder / "cert.pem", CA.issue_cert(name, "127.0.0.1").private_key_and_cert_chain_pem.bytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    issue(folder, "first.example")
    write(folder / "keys", b"sk-one 1 one requests-per-minute=1000\nsk-two 1 two requests-per-minute=3\n")
    return folder


@pytest.fixture(scope="module")
def server(flags: tuple[str, ...], folder: Path) -> Iterator[ServerProcess]:
    admin_port = free_port()
    files = ("--tls-cert", str(folder / "cert.pem"), "--api-keys", str(folder / "keys"))
    with ServerProcess(folder, *flags, *files, "--admin-port", str(admin_port), wait=False) as server:
        server.http.close()
        server.http = httpx.Client(base_url=f"http://127.0.0.1:{admin_port}", trust_env=False)
        server.until(server.is_healthy, timeout=60)
        yield server


@pytest.fixture(scope="module")
def https(server: ServerProcess) -> Iterator[httpx.Client]:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=context, trust_env=False) as https:
        yield https


def complete(https: httpx.Client, key: str) -> httpx.Response:
    return https.post("/v1/completions", json=BODY, headers={"Authorization": f"Bearer {key}"})


def test_https_answers_and_http_does_not(server: ServerProcess, https: httpx.Client) -> None:
    assert complete(https, "sk-one").status_code == 200
    with https.stream(
        "POST", "/v1/completions", json={**BODY, "stream": True}, headers={"x-api-key": "sk-one"}
    ) as sent:
        assert sent.headers["x-ratelimit-limit-requests"] == "1000"
        assert sent.read().endswith(b"data: [DONE]\n\n")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.port}/health", trust_env=False)


def test_metrics_are_on_the_admin_port_alone(server: ServerProcess, https: httpx.Client) -> None:
    assert https.get("/metrics", headers={"Authorization": "Bearer sk-one"}).status_code == 404
    assert https.get("/readyz").status_code == 200
    assert server.http.get("/v1/models").status_code == 404
    assert server.metric("last_reload_successful", file="tls") == 1


def test_a_key_has_its_limit(server: ServerProcess, https: httpx.Client) -> None:
    answers = [complete(https, "sk-two") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    assert server.metric("key_limited_total", key="two", limit="requests") == 2
    assert 'key=two "POST /v1/completions" 429' in server.log


def test_keys_and_certificates_change_while_it_runs(server: ServerProcess, https: httpx.Client, folder: Path) -> None:
    write(folder / "keys", b"sk-three 1 three\n")
    server.until(lambda: complete(https, "sk-three").status_code == 200)
    assert complete(https, "sk-one").status_code == 401
    write(folder / "keys", b"sk-three 1 three oops\n")
    server.until(lambda: server.metric("last_reload_successful", file="api-keys") == 0)
    assert complete(https, "sk-three").status_code == 200
    assert "line 1: expected KEY [WEIGHT]" in server.log
    assert "sk-" not in server.log
    issue(folder, "second.example")
    server.until(lambda: server.metric("reloads_total", file="tls", result="ok") == 1)
    context = ssl.create_default_context()
    CA.configure_trust(context)
    connection = socket.create_connection(("127.0.0.1", server.port))
    with context.wrap_socket(connection, server_hostname="second.example") as secure:
        assert secure.version() == "TLSv1.3"


def test_it_ends_as_ever_while_handshakes_are_unfinished(server: ServerProcess, https: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        https.get("/readyz")
        status, seconds = server.stop(signal.SIGTERM)
    assert status == 0, server.log
    assert seconds < 2  # as with nobody there
    assert "Traceback" not in server.log

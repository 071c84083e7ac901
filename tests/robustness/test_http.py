"""Rows 22 to 31: bytes on a connection, keys, files and sockets (tests.robustness.rows)."""

from __future__ import annotations

import gzip
import shutil
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from tests.robustness.conftest import HEADERS, KEY, OTHER_KEY
from tests.support import checkpoints
from tests.support.running import generate, greedy_params, load, make_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.e2e.server_process import ServerProcess

_MEMORY = 50 << 20  # bytes by which one client may let the server grow
_PUBLIC = {"/health", "/ping", "/livez", "/readyz", "/startupz", "/metrics", "/load", "/version"}
_PAGES = {"/", "/docs", "/openapi.json"}  # the page and the reference, which tell nothing of this server's users


@dataclass
class Answer:
    status: int
    text: str


def row(number: int, what: str, *values: Any) -> Any:
    return pytest.param(*values, id=f"{number:02} {what}")


def send(server: ServerProcess, pieces: Iterable[bytes], pause: float = 0.0, patience: float = 10.0) -> Answer:
    """Send pieces at a pace and read until the server ends the connection; status 0 is no answer."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=patience) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)  # the pace of a slow client is what is tested
            while data := connection.recv(65536):
                received += data
        except ConnectionError:
            pass
    status = int(received.split()[1]) if received.startswith(b"HTTP/1.1 ") else 0
    return Answer(status, received.decode(errors="replace"))


def head(*lines: str, key: str | None = KEY, path: str = "/v1/completions", method: str = "POST") -> bytes:
    keys = [] if key is None else [f"Authorization: Bearer {key}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *keys, *lines, "", ""]).encode(
        "latin-1"
    )


def get(path: str, *lines: str, key: str | None = None) -> list[bytes]:
    return [head(*lines, key=key, path=path, method="GET")]


BOMB = gzip.compress(b'{"prompt": "' + b"a" * 50_000_000 + b'"}')
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
ENDED = [
    row(19, "a gzip bomb", [head("Content-Encoding: gzip", f"Content-Length: {len(BOMB)}"), BOMB], 0, {400, 415}),
    row(22, "one header without end", [head()[:-2] + b"X: ", *[b"a" * 65536] * 800], 0, {431, 0}),
    row(22, "10,000 headers", [head(*["X: a"] * 10_000)], 0, {431}),
    row(22, "a long path", [head(path="/" + "a" * 100_000)], 0, {431, 414}),
    row(23, "announced", [head("Content-Length: 30000000"), b"x" * 65536], 0, {413}),
    row(23, "in chunks", [head("Transfer-Encoding: chunked"), *[CHUNK] * 400], 0, {413}),
    row(23, "two lengths", [head("Content-Length: 1", "Content-Length: 30000000"), b"x"], 0, {400, 413}),
    row(23, "a length and chunks", [head("Content-Length: 3", "Transfer-Encoding: chunked"), b"0\r\n\r\n"], 0, {400}),
    row(23, "a negative length", [head("Content-Length: -1"), b"x"], 0, {400}),
    row(24, "half a header", [head()[:30]], 0, {408, 0}),
    row(24, "a header byte by byte", [bytes([byte]) for byte in head()[:80]], 0.05, {408, 0}),
    row(24, "half a body", [head("Content-Length: 1000"), b'{"prompt": '], 0, {408}),
    row(24, "nothing", [b""], 0, {408, 0}),
    row(25, "a path in the host", get("/v1/models", "Host: x/health"), 0, {400, 401}),
    row(25, "a key's place in the path", get(f"/v1/models?api_key={KEY}"), 0, {401}),
    row(25, "dots", get("/health/../v1/models"), 0, {401, 404}),
    row(25, "encoded dots", get("/health/%2e%2e/v1/models"), 0, {401, 404}),
    row(25, "two slashes", get("//v1/models"), 0, {401, 404}),
    row(25, "an address", get("http://x/health/v1/models"), 0, {400, 401, 404}),
    row(25, "an address of a public path", get("http://health/v1/models"), 0, {400, 401, 404}),
    row(25, "a semicolon", get("/v1/models;/health"), 0, {401, 404}),
    row(25, "a forwarded path", get("/v1/models", "X-Original-URL: /health", "X-Forwarded-Prefix: /health"), 0, {401}),
    row(26, "wrong", get("/v1/models", key="sk-wrong"), 0, {401}),
    row(26, "empty", get("/v1/models", key=""), 0, {401}),
    row(26, "not ASCII", get("/v1/models", key="\xff\xfe"), 0, {401}),
    row(26, "its beginning", get("/v1/models", key=KEY[:-1]), 0, {401}),
    row(26, "another scheme", get("/v1/models", f"Authorization: Basic {KEY}"), 0, {401}),
    row(26, "two keys", get("/v1/models", "Authorization: Bearer sk-wrong", key=KEY), 0, {401}),
    row(26, "none", get("/v1/models"), 0, {401}),
]


@pytest.mark.parametrize(("pieces", "pause", "statuses"), ENDED)
def test_it_is_answered_or_ended(server: ServerProcess, pieces: list[bytes], pause: float, statuses: set[int]) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    answer = send(server, pieces, pause)
    assert answer.status in statuses, answer.text[:1000]
    assert process.memory_info().rss - before < _MEMORY
    if answer.status in (400, 401, 404, 413, 431):
        assert '"error"' in answer.text
    assert KEY not in answer.text


@pytest.mark.parametrize("methods", [row(27, "by each method", ("GET", "POST", "HEAD", "DELETE", "PUT", "OPTIONS"))])
def test_every_route_without_a_key(server: ServerProcess, methods: tuple[str, ...]) -> None:
    schema = server.http.get("/openapi.json").json()
    paths = {path.replace("{", "").replace("}", "") for path in schema["paths"]} | {"/docs", "/openapi.json", "/redoc"}
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        answered = {
            path
            for path in paths
            for method in methods
            if http.request(method, path).status_code not in (401, 403, 404, 405)
        }
    assert answered <= _PUBLIC | _PAGES


@pytest.mark.parametrize("length", [row(29, "of 320 tokens", 320)])
def test_prefixes_of_another_key(server: ServerProcess, length: int) -> None:
    def cached(key: str) -> int:
        body = {"prompt": [7, 9, 11, 13] * (length // 4), "max_tokens": 1}
        answer = server.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        count: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return count

    assert cached(KEY) == 0
    assert cached(OTHER_KEY) == 0
    assert cached(KEY) >= length - 16


@pytest.mark.parametrize("key", [row(30, key, key) for key in ("AutoConfig", "AutoModelForCausalLM")])
def test_code_in_a_checkpoint(tiny_llama: Path, tmp_path: Path, key: str) -> None:
    folder = checkpoints.copy(tiny_llama, tmp_path / "model", auto_map={key: "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    shutil.copy(folder / "modeling_evil.py", folder / "config.py")
    expected = generate(load(tiny_llama), [make_prompt(9)], greedy_params(4))
    assert generate(load(folder), [make_prompt(9)], greedy_params(4)) == expected
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", [row(31, "TCP", "inet"), row(31, "files", "unix")])
def test_internal_sockets(server: ServerProcess, kind: str) -> None:
    """The engine listens on nothing; the socket to it lies where this user alone may enter."""
    engine, process = psutil.Process(server.engine.pid), psutil.Process(server.process.pid)
    if kind == "inet":
        assert engine.net_connections("inet") == []
        listening = {c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening == {server.port}
    else:
        paths = {Path(connection.laddr) for connection in process.net_connections("unix") if connection.laddr}
        [folder] = {path.parent for path in paths if path.name == "engine"}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert server.http.get("/v1/models", headers=HEADERS).status_code == 200

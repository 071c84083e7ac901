"""Answers while there is no app yet: bounded, whatever clients do, and gone when the app takes over."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from server.http import early
from server.http.early import EarlyAnswers
from server.startup import Startup

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setattr(early, "_DELAY", 0.0)
    monkeypatch.setattr(early, "_LINGER", 0.1)
    monkeypatch.setattr(early, "_TIMEOUT", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def ask(listener: socket.socket, sent: bytes) -> bytes:
    with socket.create_connection(listener.getsockname(), timeout=10) as connection:
        connection.sendall(sent)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def get(listener: socket.socket, path: str) -> tuple[int, Any]:
    head, body = ask(listener, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).split(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    return int(head.split()[1]), json.loads(body)


def test_probes_are_answered_while_a_model_is_downloaded(listener: socket.socket) -> None:
    startup = Startup()
    startup.tell("downloading the model")
    with EarlyAnswers([listener], startup):
        status, answer = get(listener, "/startupz?verbose")
        assert (status, answer["status"], answer["phase"]) == (503, "starting", "downloading the model")
        assert answer["share"] is None
        assert answer["seconds"] >= answer["phase_seconds"] >= 0
        assert get(listener, "/livez") == (200, {"status": "starting"})
        assert get(listener, "/readyz/") == (503, {"status": "starting"})
        assert get(listener, "/v1/models")[1]["error"]["type"] == "service_unavailable_error"
        assert ask(listener, b"HEAD /health HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
    listener.settimeout(0.01)  # nobody accepts any more, and the listener still listens
    with socket.create_connection(listener.getsockname()):
        listener.accept()[0].close()


def test_no_client_holds_it_up(listener: socket.socket) -> None:
    with EarlyAnswers([listener], Startup()):
        get(listener, "/livez")
        silent = [socket.create_connection(listener.getsockname()) for _ in range(100)]
        with contextlib.suppress(ConnectionError):
            assert ask(listener, b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000) == b""
        for connection in silent:
            connection.settimeout(10)
            assert connection.recv(1) == b""  # by the limit on their number, or on their time
            connection.close()
        assert ask(listener, b"\x00\xff\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        assert get(listener, "/livez")[0] == 200


def test_a_model_that_is_found_at_once_starts_nothing(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "_DELAY", 60.0)
    monkeypatch.setattr(early.asyncio, "run", lambda _: pytest.fail("it was started"))
    with EarlyAnswers([listener], Startup()):
        pass

"""Processes that die, and signals: what clients see, and that nothing is left running."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.processes import wait_gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG = {"prompt": "a", "max_tokens": 15_000, "ignore_eos": True, "temperature": 0}
GREEDY = {"max_tokens": 20, "ignore_eos": True, "temperature": 0}


@contextlib.contextmanager
def open_stream(server: ServerProcess) -> Iterator[Iterator[str]]:
    """The events of a long stream, its first already there."""
    with server.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        assert response.status_code == 200
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        assert "choices" in json.loads(next(events))
        yield events


def last_two(events: Iterator[str]) -> tuple[dict[str, Any], str]:
    """How a stream ends."""
    *_, error, end = events
    return json.loads(error), end


def check_unavailable(error: dict[str, Any]) -> None:
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"message", "type", "param", "code"}
    assert error["error"]["type"] == "service_unavailable_error"
    assert error["error"]["code"] == "server_is_overloaded"


def is_closed(server: ServerProcess) -> bool:
    """Whether the server takes no connections."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", server.port)) != 0


def check_clean(log: str) -> None:
    """An end on purpose is not reported as an accident."""
    assert not any(word in log for word in ("Traceback", "Fatal", " ERROR ", "died")), log


def test_an_engine_that_cannot_load_its_model_again_is_tried_again(tmp_path: Path, tiny_llama: Path) -> None:
    folder, hidden = tmp_path / "model", tmp_path / "hidden"
    shutil.copytree(tiny_llama, folder)
    with ServerProcess(tmp_path, "--model", str(folder)) as server:
        before = server.complete("Hello", return_token_ids=True, **GREEDY)
        folder.rename(hidden)
        server.engine.kill()
        server.until(lambda: "cannot start again" in server.log)
        hidden.rename(folder)
        server.until(server.is_healthy)
        after = server.complete("Hello", return_token_ids=True, **GREEDY)
        assert after["token_ids"] == before["token_ids"]


def test_a_killed_engine_ends_streams_with_an_error_and_comes_back(server: ServerProcess) -> None:
    before = server.complete("Hello", return_token_ids=True, **GREEDY)
    engine = server.engine
    with open_stream(server) as events:
        engine.kill()
        error, end = last_two(events)
    check_unavailable(error)
    assert end == "[DONE]"
    response = server.http.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "restarting")
    refused = server.http.post("/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 503
    check_unavailable(refused.json())
    assert int(refused.headers["retry-after"]) >= 1

    server.until(server.is_healthy, timeout=30)
    assert server.engine != engine
    assert wait_gone([engine.pid], 0)
    assert server.complete("Hello", return_token_ids=True, **GREEDY) == before
    assert server.metric("kv_cache_usage_ratio") == 0
    assert server.metric("requests_running") == 0
    assert server.metric("engine_restarts_total") == 1


def test_the_next_engine_knows_what_grammars_are_matched_on(server: ServerProcess) -> None:
    only_yes = {"structured_outputs": {"choice": ["yes"]}}
    assert server.complete("a", **only_yes)["text"] == "yes"
    server.engine.kill()
    server.until(lambda: not server.is_healthy())
    server.until(server.is_healthy, timeout=30)
    assert server.complete("a", **only_yes)["text"] == "yes"


def test_what_tries_grammars_ends_with_a_server_that_is_killed(own_server: ServerProcess) -> None:
    own_server.complete("a", structured_outputs={"choice": ["yes"]})
    children = [child.pid for child in psutil.Process(own_server.process.pid).children()]
    assert len(children) >= 2  # the engine, and the processes that try grammars or render templates
    own_server.process.kill()
    own_server.process.wait(timeout=10)
    assert wait_gone(children, 5)


def test_a_killed_engine_answers_waiting_requests_with_503(server: ServerProcess) -> None:
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.http.post, "/v1/completions", json=LONG) for _ in range(3)]
        server.until(lambda: server.metric("requests_running") == 3)
        server.engine.kill()
        responses = [request.result(timeout=30) for request in waiting]
    assert [response.status_code for response in responses] == [503, 503, 503]
    for response in responses:
        check_unavailable(response.json())
    server.until(server.is_healthy, timeout=30)


def test_an_engine_that_hangs_is_killed_and_comes_back(flags: tuple[str, ...], tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *flags, "--engine-timeout", "3") as server:
        before = server.complete("Hello", return_token_ids=True, **GREEDY)
        engine = server.engine
        with open_stream(server) as events:
            engine.suspend()
            late = server.http.post("/v1/completions", json={"prompt": "a", "timeout": 0.2})
            assert late.status_code == 408  # though the engine ends nothing
            error, end = last_two(events)
        check_unavailable(error)
        assert end == "[DONE]"
        server.until(server.is_healthy, timeout=30)
        assert wait_gone([engine.pid], 0)
        assert "no sign of life for 3 s" in server.log
        assert server.complete("Hello", return_token_ids=True, **GREEDY) == before
        assert server.metric("engine_restarts_total") == 1
        assert server.metric("sequences_finished_total", finished_reason="timeout") == 1


@pytest.fixture
def own_server(flags: tuple[str, ...], tmp_path: Path) -> Iterator[ServerProcess]:
    """A server for one test, which may end it."""
    with ServerProcess(tmp_path, *flags, "--drain-timeout", "0.5") as server:
        yield server


@pytest.mark.parametrize(
    ("sig", "group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)],
    ids=["SIGTERM", "SIGTERM to the group", "ctrl-C to the group"],
)
def test_a_signal_ends_the_server_soon_with_an_open_stream(own_server: ServerProcess, sig: int, group: bool) -> None:
    pids = [own_server.process.pid, own_server.engine.pid]
    with open_stream(own_server) as events:
        status, seconds = own_server.stop(sig, group=group)
        error, end = last_two(events)
    assert (status, seconds < 5) == (0, True), (status, seconds, own_server.log)
    check_unavailable(error)
    assert "shutting down" in error["error"]["message"]
    assert end == "[DONE]"
    assert wait_gone(pids, 1)
    check_clean(own_server.log)


def test_a_signal_lets_short_requests_finish(flags: tuple[str, ...], tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *flags, "--drain-timeout", "20") as server:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, last, end = lines
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert end == "data: [DONE]"
        assert server.process.wait(timeout=10) == 0
        check_clean(server.log)


def test_an_idle_server_ends_at_once(own_server: ServerProcess) -> None:
    engine = own_server.engine
    status, seconds = own_server.stop(signal.SIGTERM)
    assert (status, seconds < 3) == (0, True), (status, seconds, own_server.log)
    assert wait_gone([engine.pid], 1)
    check_clean(own_server.log)
    with pytest.raises(httpx.ConnectError):
        own_server.http.get("/health")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_server_at_once(flags: tuple[str, ...], tmp_path: Path, sig: int) -> None:
    """In the drain, which ctrl-C begins without the delay, or in the delay; no body that never comes holds it up."""
    with ServerProcess(tmp_path, *flags, "--drain-delay", "600", "--drain-timeout", "600") as server:
        engine = server.engine
        with open_stream(server) as events, socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
            server.process.send_signal(sig)
            server.until(lambda: is_closed(server) if sig == signal.SIGINT else not server.is_healthy())
            status, _ = server.stop(sig)
            error, end = last_two(events)
        check_unavailable(error)
        assert (status, end) == (0, "[DONE]")
        assert wait_gone([engine.pid], 1)
        check_clean(server.log)


def test_the_engine_ends_when_the_server_is_killed(own_server: ServerProcess) -> None:
    engine = own_server.engine
    with open_stream(own_server), contextlib.suppress(httpx.TransportError):
        own_server.process.kill()
        own_server.process.wait(timeout=10)
        assert wait_gone([engine.pid], 5)
    assert own_server.process.returncode == -signal.SIGKILL

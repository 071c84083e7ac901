"""The end of a server behind a load balancer: no request is lost, and nothing is left, whenever it is told to end."""

from __future__ import annotations

import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.e2e.test_faults import check_clean
from tests.support.processes import wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = {"prompt": "a", "max_tokens": 20, "ignore_eos": True}


def ask(http: httpx.Client, *, stream: bool) -> bool:
    """Ask for an answer, which must come whole; whether the server wants the connection closed."""
    response = http.post("/v1/completions", json=SHORT | {"stream": stream})
    assert response.status_code == 200, response.text
    assert '"finish_reason":"length"' in response.text
    assert response.text.endswith("data: [DONE]\n\n") or not stream
    return response.headers.get("connection") == "close"


def ask_until_told_to_leave(server: ServerProcess, stream: bool, served: list[None]) -> None:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
        while not ask(http, stream=stream):
            served.append(None)


def test_a_drained_server_loses_no_request(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Clients on connections that are kept alive, new clients, and a stream that outlasts the delay."""
    with (  # the pool is left last: its clients end with the server, whatever else goes wrong
        ThreadPoolExecutor(2) as pool,
        ServerProcess(tmp_path, *flags, "--drain-delay", "2", "--drain-timeout", "60") as server,
    ):
        with (
            server.http.stream("POST", "/v1/completions", json=SHORT | {"max_tokens": 4000, "stream": True}) as long,
        ):
            counts: list[list[None]] = [[], []]
            clients = [pool.submit(ask_until_told_to_leave, server, i == 0, counts[i]) for i in range(2)]
            server.until(lambda: all(len(served) >= 3 for served in counts))
            for path in ("/livez", "/readyz", "/startupz", "/health"):
                assert httpx.get(server.url + path).json()["status"] == "ready"

            server.process.send_signal(signal.SIGTERM)
            server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
            answers = {path: httpx.get(server.url + path) for path in ("/livez", "/readyz", "/startupz", "/health")}
            assert [answer.status_code for answer in answers.values()] == [200, 503, 200, 503]
            assert all(answer.json()["status"] == "draining" for answer in answers.values())
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
                assert ask(http, stream=False)
            for client in clients:
                client.result(timeout=30)
            *_, last, end = (line for line in long.iter_lines() if line)
        assert '"finish_reason":"length"' in last
        assert end == "data: [DONE]"
        assert server.process.wait(timeout=30) == 0
        check_clean(server.log)


def catches(server: ServerProcess, sig: int) -> bool:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (sig - 1) & 1)


@pytest.mark.parametrize(
    ("sig", "stage"),
    [
        (signal.SIGTERM, lambda server: catches(server, signal.SIGTERM)),
        (signal.SIGTERM, lambda server: psutil.Process(server.process.pid).children()),
        (signal.SIGINT, lambda server: psutil.Process(server.process.pid).children()),
        (signal.SIGTERM, lambda server: "starting" in server.log),
    ],
    ids=["before any import", "while the engine starts", "ctrl-C then", "while the model is loaded"],
)
def test_a_signal_during_the_start_ends_it_without_a_trace(
    flags: tuple[str, ...], tmp_path: Path, sig: int, stage: Callable[[ServerProcess], bool]
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # short enough for a socket's address
        with ServerProcess(tmp_path, *flags, wait=False, environment={"TMPDIR": temporary}) as server:
            server.until(lambda: bool(stage(server)))
            children = [child.pid for child in psutil.Process(server.process.pid).children()]
            assert server.stop(sig)[0] == 0, server.log
            check_clean(server.log)
            assert wait_gone(children, 1)
        assert os.listdir(temporary) == []

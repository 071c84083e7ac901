"""Rows 32 to 40: faults (tests.robustness.rows). Those of processes that die are in tests/e2e/test_faults.py."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.robustness.conftest import KEY
from tests.support.processes import wait_gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREEDY = {"prompt": "Hello", "max_tokens": 48, "ignore_eos": True, "temperature": 0, "return_token_ids": True}


def row(number: int, what: str, *values: Any) -> Any:
    return pytest.param(*values, id=f"{number:02} {what}")


class FaultyServer(ServerProcess):
    """A server whose engines read the faults of a file when they start."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._faults = folder / "faults"
        super().__init__(folder, *flags, environment={"DEEPSEEK_SERVE_FAULTS": str(self._faults)})

    def plant(self, *faults: str) -> None:
        """The faults of the next engine."""
        self._faults.write_text("".join(f"{fault}\n" for fault in faults))

    def restart_engine(self) -> None:
        number = self.metric("engine_restarts_total")
        self.engine.kill()
        self.until(lambda: self.metric("engine_restarts_total") > number and self.is_healthy(), timeout=60)

    def stream(self, **body: Any) -> tuple[list[int], str | None]:
        """The tokens of a stream, and the type of the error that ended it; it must end in order."""
        with self.http.stream("POST", "/v1/completions", json=GREEDY | {"stream": True} | body) as response:
            if response.status_code != 200:
                return [], json.loads(response.read())["error"]["type"]
            *lines, end = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        assert end == "[DONE]"
        events = [json.loads(line) for line in lines]
        error = events.pop()["error"]["type"] if "error" in events[-1] else None
        return [token for event in events for token in event["choices"][0]["token_ids"]], error


@pytest.fixture(scope="module")
def faulty(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """A server whose first engine has faults in its steps, far enough from each other."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faults").write_text("forward raise #100\nforward oom #200\nsample nan #300\n")
    with FaultyServer(folder, *flags, "--engine-timeout", "2") as server:
        yield server


@pytest.fixture(scope="module")
def expected(faulty: FaultyServer) -> list[int]:
    tokens, error = faulty.stream()
    assert (len(tokens), error) == (GREEDY["max_tokens"], None)
    return tokens


@pytest.mark.parametrize(
    ("last", "errors"),
    [row(32, "steps fail", "forward oom", {1, 2}), row(39, "logits of a row are no numbers", "sample nan", {1})],
)
def test_faults_of_a_step(faulty: FaultyServer, expected: list[int], last: str, errors: set[int]) -> None:
    """Two streams at a time, until a fault has happened: each ends in order, and all others get the right tokens."""
    engine = faulty.engine
    while f"a planted fault: {last}" not in faulty.log:
        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(lambda _: faulty.stream(), range(2)))
        for tokens, error in ended:
            assert tokens == expected[: len(tokens)]
            assert error == (None if len(tokens) == len(expected) else "server_error")
    assert sum(error is not None for _, error in ended) in errors
    assert faulty.engine == engine
    assert faulty.metric("kv_cache_usage_ratio") == 0


@pytest.mark.parametrize("fault", [row(33, "and the next engine lacks memory", "forward hang #20")])
def test_a_step_that_hangs(faulty: FaultyServer, expected: list[int], fault: str) -> None:
    faulty.plant(fault)
    faulty.restart_engine()
    faulty.plant("allocate oom #1")
    engine = faulty.engine
    tokens, error = faulty.stream()
    assert tokens == expected[: len(tokens)]
    assert error == "service_unavailable_error"
    faulty.until(lambda: "a planted fault: allocate oom" in faulty.log)
    assert faulty.http.get("/health").status_code == 503
    faulty.plant()
    faulty.until(faulty.is_healthy, timeout=60)
    assert faulty.stream() == (expected, None)
    assert wait_gone([engine.pid], 0)


@pytest.mark.parametrize("size", [row(37, "of a stream", 4)])
def test_a_reader_that_stops(server: ServerProcess, size: int) -> None:
    """The answer is larger than what the buffers between the two hold: 2,000 tokens, each with 20 alternatives."""
    fields = {"prompt": [65] * 2000, "n": size, "max_tokens": 400, "ignore_eos": True, "echo": True, "logprobs": 20}
    body = json.dumps(fields | {"stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with contextlib.closing(socket.socket()) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", server.port))
        port, process = reader.getsockname()[1], psutil.Process(server.process.pid)

        def is_open() -> bool:
            return any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp"))

        server.until(is_open)
        reader.sendall(head.encode() + body)
        server.until(lambda: not is_open())
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := reader.recv(1 << 20):
                received += data
    assert received.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" not in received


@pytest.mark.parametrize("number", [row(38, "beside a stream", 6)])
def test_streams_beside_long_prompts(server: ServerProcess, number: int) -> None:
    def ask(i: int) -> int:
        body = {"prompt": [i] * 2000, "max_tokens": 1}
        return server.http.post("/v1/completions", json=body).status_code

    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with ThreadPoolExecutor(number) as pool, server.http.stream("POST", "/v1/completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        prompts = [pool.submit(ask, i) for i in range(number)]
        last, longest = time.monotonic(), 0.0
        for _ in lines:
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        assert [prompt.result() for prompt in prompts] == [200] * number
    assert longest < 1.0

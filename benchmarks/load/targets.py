"""Servers to measure: running ones, and servers started here, which are ended together with their child processes."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_POLL = 0.05  # seconds
_END_TIMEOUT = 20.0  # seconds


class TargetError(Exception):
    """A server did not start."""


@dataclass(frozen=True)
class Target:
    """A server that is ready."""

    name: str
    url: str


@contextlib.contextmanager
def running(name: str, where: str, timeout: float) -> Iterator[Target]:
    """A target from its URL, or from a command with {port} in it, which runs until the `with` statement ends.

    Raises:
        TargetError: it is not ready within `timeout` seconds, or has ended.
    """
    if where.startswith(("http://", "https://")):
        _wait_ready(name, where, timeout, None, None)
        yield Target(name, where)
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [word.replace("{port}", str(port)) for word in shlex.split(where)]
    with tempfile.TemporaryFile() as log:
        try:
            process = start(command, log)
        except OSError as error:
            raise TargetError(f"{name} cannot be started: {error}") from None
        try:
            _wait_ready(name, url, timeout, process, log)
            yield Target(name, url)
        finally:
            end(process)


def _wait_ready(
    name: str, url: str, timeout: float, process: subprocess.Popen[bytes] | None, log: IO[bytes] | None
) -> None:
    try:
        until(lambda: is_healthy(url), timeout, process)
    except TargetError as error:
        raise TargetError(f"{name} {error}{_tail(log)}") from None


def start(command: Sequence[str], log: IO[bytes], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server in a new process group; `end` ends the group."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True)


def until(condition: Callable[[], bool], timeout: float, process: subprocess.Popen[bytes] | None) -> None:
    """Poll a condition that a server does not signal.

    Raises:
        TargetError: `timeout` seconds have passed, or the server's process has ended.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            raise TargetError(f"has ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise TargetError(f"is not ready in {timeout} s")
        time.sleep(_POLL)  # servers of other projects send no signal when ready


def is_healthy(url: str) -> bool:
    """Whether /health answers 200."""
    try:
        get(url, "/health", timeout=5)
    except OSError:
        return False
    return True


def get(url: str, path: str, key: str = "", timeout: float = 30) -> bytes:
    """What a server answers to GET; `url` may end with /v1.

    Raises:
        OSError: the server does not answer, or with an error; urllib's errors are among these.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url.rstrip("/").removesuffix("/v1") + path, headers=headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as response:
        body: bytes = response.read()
        return body


def _tail(log: IO[bytes] | None) -> str:
    if log is None:
        return ""
    log.seek(0)
    return ":\n" + "\n".join(log.read().decode(errors="replace").splitlines()[-20:])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server's process group: SIGTERM first, then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port

"""Servers to measure: running ones, and servers started here, which are ended together with their child processes."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from server.commands.child_server import NotReadyError, end, free_port, start, tail, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator


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
    except NotReadyError as error:
        raise TargetError(f"{name} {error}{tail(log) if log else ''}") from None


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

"""A server as a child of this process: started in a process group of its own, awaited, and ended with its children.

For programs that start servers for a while: evaluation and benchmarks. What is asked of them is elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_POLL = 0.05  # seconds
_END_TIMEOUT = 20.0  # seconds
_TAIL = 20  # lines


class NotReadyError(Exception):
    """A server did not start; the text goes on after its name."""


def start(command: Sequence[str], log: IO[bytes], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server in a new process group; `end` ends the group."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True)


def until(condition: Callable[[], bool], timeout: float, process: subprocess.Popen[bytes] | None) -> None:
    """Poll a condition that a server does not signal.

    Raises:
        NotReadyError: `timeout` seconds have passed, or the server's process has ended.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            raise NotReadyError(f"has ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise NotReadyError(f"is not ready in {timeout} s")
        time.sleep(_POLL)  # servers send no signal to strangers when ready


def tail(log: IO[bytes]) -> str:
    """The last lines of a server's log, after a colon."""
    log.seek(0)
    return ":\n" + "\n".join(log.read().decode(errors="replace").splitlines()[-_TAIL:])


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

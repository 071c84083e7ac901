"""The server to evaluate: one at a URL, or `deepseek-serve MODEL` started here for as long as it takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from engine.errors import DeepseekServeError
from server.commands.remote import RemoteServer
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_START_TIMEOUT = 900.0  # seconds; the default model may have to be fetched first
_END_TIMEOUT = 20.0  # seconds
_POLL = 0.1  # seconds
_USUAL_LENGTH = 2048  # tokens, where a server does not say what its model takes


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        url: without /v1.
        model: the name to ask for.
        max_length: tokens of a prompt and its answer.
    """

    url: str
    model: str
    max_length: int
    api_key: str | None = None


def at(url: str, api_key: str | None = None, model: str | None = None) -> Served:
    """Return the server at a URL, and its first model unless another is named.

    Raises:
        DeepseekServeError: it does not answer, or has no such model.
    """
    server = RemoteServer(url, api_key)
    models = server.models()
    found = next((item for item in models if model in (None, item["id"])), None)
    if found is None:
        raise TrainingError(f"{url} serves {', '.join(item['id'] for item in models)}, and no {model}")
    return Served(server.url, found["id"], int(found.get("max_model_len") or _USUAL_LENGTH), api_key)


@contextlib.contextmanager
def started(model: str | None, flags: Sequence[str] = ()) -> Iterator[Served]:
    """Serve a model (None: the default one) on a free port of this machine until the `with` statement ends.

    Raises:
        TrainingError: the server ended, or was not ready in time; the text has the end of its log.
    """
    port = _free_port()
    command = [sys.executable, "-m", "server.cli", *([model] if model else []), "--port", str(port), *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_SERVE_")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            yield _wait(process, f"http://127.0.0.1:{port}", log)
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> Served:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(DeepseekServeError):
            if RemoteServer(url, timeout=5).models()[0]["max_model_len"] is not None:  # the model is loaded
                return at(url)
        time.sleep(_POLL)  # a server that starts has no way to signal a stranger
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    raise TrainingError("\n".join(["the server did not start:", *lines[-20:]]))


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port

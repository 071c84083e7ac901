"""The server to evaluate: one at a URL, or `deepseek-serve MODEL` started here for as long as it takes."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from engine.errors import DeepseekServeError
from server.commands.child_server import NotReadyError, end, free_port, start, tail, until
from server.commands.remote import RemoteServer
from training.errors import TrainingError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

_START_TIMEOUT = 900.0  # seconds; the default model may have to be fetched first
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
    port = free_port()
    command = [sys.executable, "-m", "server.cli", *([model] if model else []), "--port", str(port), *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_SERVE_")}
    with tempfile.TemporaryFile() as log:
        process = start(command, log, environment)
        try:
            yield _wait(process, f"http://127.0.0.1:{port}", log)
        finally:
            end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> Served:
    def has_loaded() -> bool:
        with contextlib.suppress(DeepseekServeError):
            return RemoteServer(url, timeout=5).models()[0]["max_model_len"] is not None
        return False

    try:
        until(has_loaded, _START_TIMEOUT, process)
    except NotReadyError as error:
        raise TrainingError(f"the server {error}{tail(log)}") from None
    return at(url)

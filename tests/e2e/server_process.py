"""The real command in a process of its own: started, asked, and ended, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load.targets import is_healthy
from server.commands.child_server import NotReadyError, end, free_port, start, until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COMMAND = Path(sys.executable).with_name("deepseek-serve")
_START_TIMEOUT = 60.0  # seconds


def is_engine(process: psutil.Process) -> bool:
    """Whether this is an engine, from its first moment on; later it has a name (engine.names)."""
    return any(word == "engine.process" or word.startswith("deepseek-serve: engine") for word in process.cmdline())


class ServerProcess:
    """`deepseek-serve` with these flags on a free port, its log in `folder`.

    Use as a context manager; entering waits until it is healthy, unless told otherwise.
    """

    command: tuple[str, ...] = (str(COMMAND),)

    def __init__(
        self, folder: Path, *flags: str, wait: bool = True, environment: Mapping[str, str] | None = None
    ) -> None:
        self._wait, self._environment = wait, environment or {}
        self._log_path = folder / f"server-{time.monotonic_ns()}.log"
        self.port = free_port()
        self._flags = ("--port", str(self.port), *flags)
        self._children: list[psutil.Process] = []

    def __enter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_SERVE_")}
        environment |= self._environment
        with self._log_path.open("wb") as log:
            self.process = start([*self.command, *self._flags], log, environment)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        try:
            if self._wait:
                self.until(self.is_healthy, timeout=_START_TIMEOUT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._end()

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def engine(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children()
        [child] = [child for child in children if is_engine(child)]
        if child not in self._children:
            self._children.append(child)
        return child

    def is_healthy(self) -> bool:
        return is_healthy(str(self.http.base_url))

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics."""
        return next(
            sample.value
            for family in text_string_to_metric_families(self.http.get("/metrics").text)
            for sample in family.samples
            if sample.name == f"deepseek_serve_{name}" and labels.items() <= sample.labels.items()
        )

    def complete(self, prompt: Any, **body: Any) -> dict[str, Any]:
        """The one choice of a completion that must succeed."""
        response = self.http.post("/v1/completions", json={"prompt": prompt, **body})
        assert response.status_code == 200, response.text
        [choice] = response.json()["choices"]
        return choice  # type: ignore[no-any-return]

    def until(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        """Wait for a condition."""
        try:
            until(condition, timeout, self.process)
        except NotReadyError as error:
            raise AssertionError(f"the server {error}:\n{self.log}") from None

    def stop(self, sig: int, *, group: bool = False) -> tuple[int, float]:
        """Signal the server (or its group, as ctrl-C does); its exit status and how many seconds its end took."""
        started = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, sig)
        return self.process.wait(timeout=30), time.monotonic() - started

    def _end(self) -> None:
        """End what may still run: the server, then any engine that it left."""
        if self.process.poll() is None:
            self._children += psutil.Process(self.process.pid).children(recursive=True)
            end(self.process)
        for child in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

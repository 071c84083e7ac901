"""A Ray of its own on this machine with the application on it: two replicas of a tiny model, and a key."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.commands.child_server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEY = "sesame"
_DEADLINE = 60.0  # seconds; far more than anything here takes


@dataclass
class Cluster:
    """The application on Ray, and the ways in which tests ask it."""

    url: str
    model: Path
    engines: Any  # Ray's handle of the replicas

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=_DEADLINE,
            limits=httpx.Limits(max_connections=128),
            trust_env=False,
            headers={"Authorization": f"Bearer {KEY}"},
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=_DEADLINE, trust_env=False)

    def metric(self, name: str) -> float:
        """One sample of /metrics."""
        return next(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == f"deepseek_serve_{name}"
        )

    def replicas(self) -> dict[str, Any]:
        """The reports of the replicas that are there, by name."""
        from ray.serve.exceptions import DeploymentUnavailableError

        def ask() -> list[Any]:
            try:
                return self.engines.broadcast("report").results(timeout_s=_DEADLINE, return_exceptions=True)
            except DeploymentUnavailableError:
                return []

        with ThreadPoolExecutor(1) as pool:  # Ray refuses to wait where an event loop runs
            answers = pool.submit(ask).result()
        return {answer.replica: answer for answer in answers if not isinstance(answer, Exception)}

    def processes(self, deployment: str) -> list[psutil.Process]:
        """The replicas' processes of a deployment; the child of an Engine's is the engine's."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "".join(process.cmdline()[:1]).startswith(f"ray::ServeReplica:default:{deployment}"):
                    found.append(process)
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that Ray does not signal."""
        deadline = time.monotonic() + _DEADLINE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def until_whole(self, other_than: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
        """Wait until two replicas are there, none of them of these names; the names of the two."""
        self.until(lambda: len(self.replicas().keys() - other_than) == 2 and self.get("/health").status_code == 200)
        return set(self.replicas())


@pytest.fixture(scope="package")
def cluster(make_llama: Callable[..., Path]) -> Iterator[Cluster]:
    import ray
    from ray import serve

    from deploy.ray.app import build

    model, port = make_llama(max_position_embeddings=16384), free_port()
    ray.init(num_cpus=8, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        flags = {"model": str(model), "dtype": "float32", "threads": 1, "num-kv-blocks": 4096, "api-key": KEY}
        serve.run(build({**flags, "replicas": 2}))
        cluster = Cluster(f"http://127.0.0.1:{port}", model, serve.get_deployment_handle("Engine", "default"))
        cluster.until_whole()
        yield cluster
        serve.shutdown()
    finally:
        ray.shutdown()

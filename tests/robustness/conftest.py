"""One server with two keys for the tests of this folder, and canaries that stream from it all the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.server_process import ServerProcess
from tests.robustness.canary import Canaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEY, OTHER_KEY = "sk-robust-1", "sk-robust-2"
HEADERS = {"Authorization": f"Bearer {KEY}"}
MAX_SEQ_LEN = 4096  # 256 blocks, though the model's context is 16,384


@pytest.fixture(scope="session")
def flags(make_llama: Callable[..., Path]) -> tuple[str, ...]:
    model = ("--model", str(make_llama(max_position_embeddings=16384)), "--served-model-name", "tiny")
    return (*model, "--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-kv-blocks", "256")


@pytest.fixture(scope="package")
def keyed_server(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("robustness")
    (folder / "keys").write_text(f"{KEY}\n{OTHER_KEY}\n")
    times = ("--header-timeout", "1", "--body-timeout", "2", "--write-timeout", "1")
    with ServerProcess(folder, *flags, "--api-keys", str(folder / "keys"), *times) as server:
        server.http.headers.update(HEADERS)
        yield server


@pytest.fixture(scope="package")
def canaries(keyed_server: ServerProcess) -> Iterator[Canaries]:
    with Canaries(keyed_server.url, HEADERS) as canaries:
        yield canaries


@pytest.fixture
def server(keyed_server: ServerProcess, canaries: Canaries) -> Iterator[ServerProcess]:
    """The server; canaries sing while the test runs, and the engine stays the same process."""
    engine = keyed_server.engine
    with canaries.beside():
        yield keyed_server
    assert keyed_server.engine == engine

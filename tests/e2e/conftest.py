"""One server for the tests of a module, on a tiny model with a context long enough for streams that last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def long_llama(make_llama: Callable[..., Path]) -> Path:
    return make_llama(max_position_embeddings=16384)


@pytest.fixture(scope="session")
def flags(long_llama: Path) -> tuple[str, ...]:
    """What every server here is started with: exact arithmetic and a small cache."""
    model = ("--model", str(long_llama), "--served-model-name", "tiny")
    return (*model, "--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-kv-blocks", "4096")


@pytest.fixture(scope="module")
def server(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server"), *flags) as server:
        yield server

"""Shared by tests of the engine: models of every kind of attention, checkpoints to damage, and a GGUF file."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.gguf_writer import write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module", params=["llama", "v2-lite", "v3", "v32"])
def model(request: pytest.FixtureRequest, tiny_llama: Path, make_deepseek: Callable[..., Path]) -> Path:
    """Grouped-query attention, and latent attention with a mixture of experts: V2's, V3's, V3.2's sparse one."""
    return tiny_llama if request.param == "llama" else make_deepseek(request.param)


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be damaged."""
    return shutil.copytree(tiny_llama, tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_llama, path)
    return path

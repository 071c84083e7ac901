"""Small models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support.small_training import load_small, write_small

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def make_model(small_folder: Path) -> Callable[[], Any]:
    """make_model() -> the small model, with weights of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return lambda: load_small(small_folder)

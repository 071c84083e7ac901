from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support.small_training import load_small, write_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that a second thread only waits; and sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def make_model(small_folder: Path) -> Callable[[], Any]:
    """make_model() -> the small model, with weights of its own."""
    torch.manual_seed(0)
    return lambda: load_small(small_folder)

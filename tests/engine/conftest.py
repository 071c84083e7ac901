"""Shared by tests of what holds for every kind of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import tiny_deepseek

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", params=["llama", "v2-lite", "v3", "v32"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Grouped-query attention, and latent attention with a mixture of experts: V2's, V3's, V3.2's sparse one."""
    if request.param == "llama":
        return tiny_llama
    return tiny_deepseek.write(tmp_path_factory.mktemp(request.param), request.param)

"""Shared by tests of the training form: tiny checkpoints in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from training.model.build import build_model
from training.model.description import ModelDescription

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from training.model.dynamic_moe import DynamicMoE


@pytest.fixture
def make_model(make_dynamic_moe: Callable[..., Path]) -> Callable[..., DynamicMoE]:
    """make_model(variant, **config) -> the tiny checkpoint of this variant (make_dynamic_moe), for training."""

    def make(variant: str, **config: Any) -> DynamicMoE:
        folder = make_dynamic_moe(variant, **config)
        return build_model(ModelDescription.read(folder), folder)

    return make

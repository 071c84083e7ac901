"""A model for a run: new by a config.json, or with the weights of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from training.model.checkpoint_files import load_weights
from training.model.dynamic_moe import DynamicMoE
from training.model.initialize import initialize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from training.model.description import ModelDescription


def build_model(
    description: ModelDescription,
    weights: Path | None,
    *,
    seed: int = 0,
    layers: range | None = None,
    heads_may_be_new: bool = False,
    divide: Callable[[DynamicMoE], None] | None = None,
) -> DynamicMoE:
    """The model, or a stage of it, on the CPU in fp32; `weights` is a Hugging Face folder, or None for new weights.

    `divide` leaves a rank its part, before there is memory for any.

    Raises:
        ModelError: the folder's tensors do not fit the config.
    """
    with torch.device("meta"):
        model = DynamicMoE(description.config, description.sizes, layers)
    if divide is not None:
        divide(model)
    model.to_empty(device="cpu")
    initialize(model, seed)
    if weights is not None:
        load_weights(model, weights, heads_may_be_new=heads_may_be_new)
    return model

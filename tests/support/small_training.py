"""A DynamicMoE of a few thousand parameters for tests of training, and rows for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.support import tiny_dynamic_moe
from training.batch import IGNORED, Batch, TokenBatch
from training.model.build import build_model
from training.model.description import ModelDescription

if TYPE_CHECKING:
    from pathlib import Path

    from training.model.dynamic_moe import DynamicMoE

_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "attention_types": ["full", "full"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "moe_num_experts": 4,
    "moe_intermediate_size": 8,
    "router_hidden_size": 8,
}


def write_small(folder: Path, **changes: Any) -> Path:
    """A checkpoint with both task heads, unless `changes` has others."""
    return tiny_dynamic_moe.write(folder, "full", **_SMALL, **changes)


def load_small(folder: Path) -> DynamicMoE:
    """The model of a checkpoint."""
    return build_model(ModelDescription.read(folder), folder)


def make_batch(lengths: list[int], *, prompt: int = 0, labels: list[int] | None = None, seed: int = 0) -> Batch:
    """Random rows of these lengths; the first `prompt` tokens are no targets."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (len(lengths), max(lengths)), generator=generator)
    targets = ids.roll(-1, 1)
    for row, length in enumerate(lengths):
        targets[row, length - 1 :] = IGNORED
        targets[row, : max(0, prompt - 1)] = IGNORED
    tokens = TokenBatch(ids, torch.zeros_like(ids), torch.tensor(lengths))
    return Batch(tokens, targets, None if labels is None else torch.tensor(labels))

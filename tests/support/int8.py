"""Int8 checkpoints, their dequantized twins, and how far logits may differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.loading.resolve import resolve_model
from engine.models.int8_scheme import Int8Scheme
from engine.quantization.quantize import quantize
from tests.support import checkpoints
from tests.support.running import make_prompt

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PROMPTS = [make_prompt(96, seed) for seed in range(3)]  # what checkpoints are calibrated on


def make_int8(source: Path, folder: Path, scheme: str) -> Path:
    folder.mkdir()
    quantize(resolve_model(str(source)), folder, scheme, PROMPTS, progress=False)
    return folder


def dequantized(folder: Path, target: Path) -> Path:
    """The same checkpoint in floats, computed here: int8 values times their scales."""
    checkpoints.copy(folder, target, quantization_config=None)
    stored = checkpoints.read_weights(folder)
    floats = {}
    for name, tensor in stored.items():
        if not name.endswith(("_scale", "_zero_point")):
            scale = stored.get(f"{name}_scale")
            floats[name] = tensor if scale is None else tensor.float() * scale
    checkpoints.write_weights(target, floats)
    return target


def scheme_of(folder: Path) -> Int8Scheme:
    return Int8Scheme.from_config(checkpoints.read_config(folder)["quantization_config"])


def distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The median over positions: a few positions go through other experts because of a rounding error."""
    return float(((logits - expected).norm(dim=1) / expected.norm(dim=1)).median())

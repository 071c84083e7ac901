"""Writes an int8 checkpoint in the format of compressed-tensors, tensor by tensor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from engine.loading.shards import ShardWriter
from engine.models.int8_scheme import INPUT_KINDS, Int8Scheme
from engine.quantization import original
from engine.quantization.choose import kind_of
from engine.quantization.layer_names import NEVER_QUANTIZED, targets_of
from engine.quantization.progress import shown
from kernels.linear_int8 import StaticInput, quantize_weight

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.loading.resolve import ModelSource
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from engine.quantization.choose import Recipe
    from kernels.linear_int8 import Input


def write(
    folder: Path, source: ModelSource, tensors: TensorSource, config: ModelConfig, recipe: Recipe, *, progress: bool
) -> int:
    """Write config.json and the weights, and copy the tokenizer's files from the source's folder.

    Returns:
        The size of all tensors in bytes.

    Raises:
        ModelError: the source is a GGUF file whose config.json cannot be written.
    """
    settings = original.read_settings(source, config)
    settings["quantization_config"] = to_scheme(recipe).to_config()
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    original.copy_files(source, folder)
    names = sorted(original.tensor_names(tensors))
    with ShardWriter(folder) as shards:
        for name in shown(names, "writing int8", "tensor", len(names), progress=progress):
            tensor = original.read_floats(name, tensors, config, is_gguf=source.is_gguf)
            layer = name.removesuffix(".weight")
            input_ = recipe.inputs.get(layer) if layer != name else None
            stored = [(name, tensor)] if input_ is None else _quantized(layer, tensor, input_)
            for stored_name, part in stored:
                shards.add(stored_name, part)
        return shards.finish()


def to_scheme(recipe: Recipe) -> Int8Scheme:
    """The recipe's layers by kind of input."""
    targets = {kind: _targets(recipe, kind) for kind in INPUT_KINDS}
    groups = tuple((kind, found) for kind, found in targets.items() if found)
    return Int8Scheme(groups, (*NEVER_QUANTIZED, *_targets(recipe, "kept")))


def _targets(recipe: Recipe, kind: str) -> tuple[str, ...]:
    return targets_of(layer for layer, input_ in recipe.inputs.items() if kind_of(input_) == kind)


def _quantized(layer: str, weight_OI: torch.Tensor, input_: StaticInput | Input) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that are stored for a layer, by name."""
    weight = quantize_weight(weight_OI, input_)
    yield f"{layer}.weight", weight.values_OI
    yield f"{layer}.weight_scale", weight.scale_O[:, None]
    if isinstance(input_, StaticInput):
        yield f"{layer}.input_scale", torch.tensor([input_.scale])
        # the file's zero point is for int8 inputs, ours for uint8
        yield f"{layer}.input_zero_point", torch.tensor([input_.zero_point - 128], dtype=torch.int8)

"""Writes an int8 checkpoint in the format of compressed-tensors, tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from engine.errors import ModelError
from engine.loading import fp8
from engine.loading.shards import ShardWriter
from engine.models.config_keys import read_json
from engine.models.int8_scheme import INPUT_KINDS, Int8Scheme
from engine.quantization.choose import kind_of
from kernels.block_weight import BlockWeight
from kernels.linear_int8 import StaticInput, quantize_weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from engine.loading.resolve import ModelSource
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from engine.quantization.choose import Recipe

_COPIED_FILES = ("tokenizer*", "*.jinja", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
           "vocab.json", "merges.txt", "modules.json", "*_Pooling/config.json",
           "config_sentence_transformers.json", "LICENSE*")  # fmt: skip
NEVER_QUANTIZED = ("lm_head", r"re:.*\.mlp\.gate$", r"re:.*\.kv_b_proj$", r"re:.*\.indexer\..*",
                    r"re:.*\.mlp\.router\..*", r"re:heads\..*")  # fmt: skip
_OURS = ("num_nextn_predict_layers",)  # not a setting of Llama's
_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(\w+)")


def write(
    folder: Path, source: ModelSource, tensors: TensorSource, config: ModelConfig, recipe: Recipe, *, progress: bool
) -> int:
    """Write config.json and the weights, and copy the tokenizer's files from the source's folder.

    Returns:
        The size of all tensors in bytes.

    Raises:
        ModelError: the source is a GGUF file whose config.json cannot be written.
    """
    raw = raw_config(source, config)
    raw["quantization_config"] = to_scheme(recipe).to_config()
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    copy_files(source, folder)
    names = sorted(names_of(tensors))
    with ShardWriter(folder) as shards:
        for name in tqdm(names, "writing int8", unit="tensor", file=sys.stderr, disable=not progress):
            for made, tensor in _stored(name, tensors, config, recipe, is_gguf=source.is_gguf):
                shards.add(made, tensor)
        return shards.finish()


def copy_files(source: ModelSource, folder: Path) -> None:
    """Copy the tokenizer's files and others from the source's folder, if it is one."""
    if not source.is_gguf:
        for path in sorted({path for pattern in _COPIED_FILES for path in source.path.glob(pattern) if path.is_file()}):
            copy = folder / path.relative_to(source.path)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)


def names_of(tensors: TensorSource) -> set[str]:
    """The tensors that `read` takes."""
    return {name for name in tensors.names() if not name.endswith("_scale_inv")}


def read(name: str, tensors: TensorSource, config: ModelConfig, *, is_gguf: bool) -> torch.Tensor:
    """A tensor in floats, as it is written if it is not quantised."""
    tensor = _stored_tensor(tensors, name)
    if tensor.dtype == torch.float8_e4m3fn:
        scales = _stored_tensor(tensors, f"{name}_scale_inv")
        return fp8.dequantize(tensor, scales, config.weight_block_size).bfloat16()
    # A GGUF file stores small tensors as fp32, and its quantised blocks are read as fp32. Both are written as bf16.
    keeps_dtype = name.endswith("e_score_correction_bias") or not is_gguf
    return tensor if keeps_dtype or tensor.dtype != torch.float32 else tensor.bfloat16()


def to_scheme(recipe: Recipe) -> Int8Scheme:
    """The recipe's layers by kind of input; one regular expression stands for all experts of a decoder layer."""
    targets = {kind: _targets(recipe, kind) for kind in INPUT_KINDS}
    groups = tuple((kind, found) for kind, found in targets.items() if found)
    return Int8Scheme(groups, (*NEVER_QUANTIZED, *_targets(recipe, "kept")))


def _targets(recipe: Recipe, kind: str) -> tuple[str, ...]:
    return targets_of(layer for layer, input_ in recipe.inputs.items() if kind_of(input_) == kind)


def targets_of(layers: Iterable[str]) -> tuple[str, ...]:
    """Layers as targets of a scheme; one regular expression stands for all experts of a decoder layer."""
    found: dict[str, None] = {}
    for layer in layers:
        match = _EXPERT.fullmatch(layer)
        found[layer if match is None else rf"re:{re.escape(match[1])}\.\d+\.{match[2]}$"] = None
    return tuple(found)


def _stored(
    name: str, tensors: TensorSource, config: ModelConfig, recipe: Recipe, *, is_gguf: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that are written for one tensor of the source."""
    layer = name.removesuffix(".weight")
    if name == layer or (input_ := recipe.inputs.get(layer)) is None:
        yield name, read(name, tensors, config, is_gguf=is_gguf)
        return
    weight = quantize_weight(read(name, tensors, config, is_gguf=is_gguf), input_)
    yield name, weight.values_OI
    yield f"{layer}.weight_scale", weight.scale_O[:, None]
    if isinstance(input_, StaticInput):
        yield f"{layer}.input_scale", torch.tensor([input_.scale])
        # the file's zero point is for int8 inputs, ours for uint8
        yield f"{layer}.input_zero_point", torch.tensor([input_.zero_point - 128], dtype=torch.int8)


def _stored_tensor(tensors: TensorSource, name: str) -> torch.Tensor:
    stored = tensors.read(name)
    return stored.dequantize(torch.float32) if isinstance(stored, BlockWeight) else stored


def raw_config(source: ModelSource, config: ModelConfig) -> dict[str, Any]:
    """The source's config.json without its quantization_config, or one for a GGUF file.

    Raises:
        ModelError: no config.json can be written for this GGUF file.
    """
    if not source.is_gguf:
        return {key: value for key, value in read_json(source.path / "config.json").items()
                if key != "quantization_config"}  # fmt: skip
    if config.mla is not None or config.rope_scaling:
        raise ModelError(
            f"{source.path} is a GGUF file from which no config.json can be written; valid sources are Hugging Face "
            "folders, and Llama's GGUF files without RoPE scaling (--quantization int8 serves any model)"
        )
    shape = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        "architectures": [config.architecture],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "eos_token_id": list(config.eos_token_ids),
        **{name: value for name, value in shape.items() if isinstance(value, int | float) and name not in _OURS},
    }

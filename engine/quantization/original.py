"""What a quantised checkpoint takes over from the original model: settings, tokenizer files, tensors in floats."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import ModelError
from engine.loading import fp8
from engine.loading.finite import check_finite
from engine.models.config_keys import read_json
from kernels.block_weight import BlockWeight

if TYPE_CHECKING:
    from pathlib import Path

    from engine.loading.resolve import ModelSource
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig

_COPIED_FILES = ("tokenizer*", "*.jinja", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
                 "vocab.json", "merges.txt", "modules.json", "*_Pooling/config.json",
                 "config_sentence_transformers.json", "LICENSE*")  # fmt: skip
_OURS = ("num_nextn_predict_layers",)  # not a setting of Llama's
_SCALES = "_scale_inv"  # of a tensor in FP8, behind its name


def read_settings(source: ModelSource, config: ModelConfig) -> dict[str, Any]:
    """The original's config.json without its quantization_config, or one for a GGUF file.

    Raises:
        ModelError: no config.json can be written for this GGUF file.
    """
    if not source.is_gguf:
        settings = read_json(source.path / "config.json")
        return {key: value for key, value in settings.items() if key != "quantization_config"}
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


def copy_files(source: ModelSource, folder: Path) -> None:
    """Copy the tokenizer's files and others from the original's folder, if it is one."""
    if not source.is_gguf:
        for path in sorted({path for pattern in _COPIED_FILES for path in source.path.glob(pattern) if path.is_file()}):
            copy = folder / path.relative_to(source.path)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)


def tensor_names(tensors: TensorSource) -> set[str]:
    """The tensors that `read_floats` takes."""
    return {name for name in tensors.names() if not name.endswith(_SCALES)}


def read_floats(name: str, tensors: TensorSource, config: ModelConfig, *, is_gguf: bool) -> torch.Tensor:
    """A tensor in floats, as it is written if it is not quantised.

    Raises:
        ModelError: it is not finite.
    """
    tensor = _read(name, tensors)
    check_finite(name, tensor)
    if tensor.dtype == torch.float8_e4m3fn:
        return fp8.dequantize(tensor, _read(f"{name}{_SCALES}", tensors), config.weight_block_size).bfloat16()
    # A GGUF file stores small tensors as fp32, and its quantised blocks are read as fp32. Both are written as bf16.
    keeps_dtype = name.endswith("e_score_correction_bias") or not is_gguf
    return tensor if keeps_dtype or tensor.dtype != torch.float32 else tensor.bfloat16()


def _read(name: str, tensors: TensorSource) -> torch.Tensor:
    stored = tensors.read(name)
    return stored.dequantize(torch.float32) if isinstance(stored, BlockWeight) else stored

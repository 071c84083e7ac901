"""config.json's quantization_config: which of a checkpoint's layers are stored how. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.int8_scheme import Int8Scheme
from engine.models.packed_scheme import FORMATS, PackedScheme

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLOCK = (128, 128)  # DeepSeek-V3's


def read_quantization(raw: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's arguments `int8`, `packed` and `weight_block_size`.

    Raises:
        ModelError: the checkpoint is quantised in a way that is not supported.
    """
    config = raw.get("quantization_config")
    if not config:
        return {}
    if not isinstance(config, dict):
        raise ModelError(f"quantization_config in config.json is {config!r}; expected an object")
    method = config.get("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(config)
    if method == "awq":
        return {"packed": PackedScheme.from_awq(config)}
    if method == "gptq":
        return {"packed": PackedScheme.from_gptq(config)}
    if method != "fp8":
        raise ModelError(
            f"quant_method in quantization_config is {method!r}; supported are DeepSeek's block-wise 'fp8', "
            "'compressed-tensors', 'awq' and 'gptq'"
        )
    return {"weight_block_size": _block_size(config)}


def _compressed_tensors(config: Mapping[str, Any]) -> dict[str, Any]:
    """Groups of layers in 4 bits and in int8; a checkpoint can have both."""
    groups = config.get("config_groups")
    names = groups if isinstance(groups, dict) else {}
    packed = {
        name: group
        for name, group in names.items()
        if isinstance(group, dict) and (group.get("format") or config.get("format")) in FORMATS
    }
    schemes: dict[str, Any] = {}
    if packed:
        schemes["packed"] = PackedScheme.from_compressed_tensors({**config, "config_groups": packed})
    if not packed or len(packed) < len(names):
        others = {name: group for name, group in names.items() if name not in packed}
        schemes["int8"] = Int8Scheme.from_config({**config, "config_groups": others} if packed else config)
    return schemes


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    size = config.get("weight_block_size") or _BLOCK
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(isinstance(length, int) and length > 0 for length in size)
    ):
        raise ModelError(f"weight_block_size in config.json is {size!r}; expected two positive whole numbers")
    return size[0], size[1]

"""config.json's quantization_config: which of a checkpoint's layers are stored how. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models import compressed_tensors, fp8_scheme, packed_scheme
from engine.models.fp8_scheme import FP8Scheme
from engine.models.int8_scheme import Int8Scheme
from engine.models.packed_scheme import PackedScheme
from engine.models.targets import check_amount

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BLOCK = (128, 128)  # DeepSeek-V3's


def read_quantization(raw: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's arguments `int8`, `fp8`, `packed` and `weight_block_size`.

    Raises:
        ModelError: the checkpoint is quantised in a way that is not supported.
    """
    config = raw.get("quantization_config")
    if not config:
        return {}
    if not isinstance(config, dict):
        raise ModelError(f"quantization_config in config.json is {config!r}; expected an object")
    method = config.get("quant_method")
    if method == compressed_tensors.METHOD:
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
    """Groups of layers in 4 bits, in FP8 and in int8; a checkpoint can have all of them."""
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            raise ModelError(f"quantization_config has a {key}, which is not supported")
    sparsity = config.get("sparsity_config") or {}
    if sparsity and sparsity.get("format", "dense") != "dense":
        raise ModelError(f"quantization_config has sparse weights ({sparsity.get('format')!r}); dense ones are read")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelError("quantization_config has no config_groups")
    check_amount(config)
    by_kind: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        kind = _kind(group.get("format") or config.get("format")) if isinstance(group, dict) else "int8"
        by_kind.setdefault(kind, {})[name] = group
    return {kind: _SCHEMES[kind]({**config, "config_groups": own}) for kind, own in by_kind.items()}


_SCHEMES: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "packed": PackedScheme.from_compressed_tensors,
    "fp8": FP8Scheme.from_config,
    "int8": Int8Scheme.from_config,  # which refuses what no other has
}


def _kind(format_: Any) -> str:
    if format_ in packed_scheme.FORMATS:
        return "packed"
    return "fp8" if format_ == fp8_scheme.FORMAT else "int8"


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    size = config.get("weight_block_size") or _BLOCK
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(isinstance(length, int) and length > 0 for length in size)
    ):
        raise ModelError(f"weight_block_size in config.json is {size!r}; expected two positive whole numbers")
    return size[0], size[1]

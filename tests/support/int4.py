"""Checkpoints in 4 bits, in each layout, packed by rules that are written out here; and their dequantised twins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.support import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEPT = ("embed_tokens", "lm_head", "mlp.gate.weight", "norm")
Tensors = dict[str, torch.Tensor]
Codes = tuple[np.ndarray, np.ndarray, np.ndarray]  # codes [O, I], scales [O, G], zeros [O, G]


def quantize(weight: np.ndarray, group: int, *, symmetric: bool) -> Codes:
    """Round to nearest: codes 0 to 15, of which `zeros` stand for 0."""
    size = weight.shape[1] if group == -1 else group
    groups = weight.reshape(len(weight), -1, size)
    if symmetric:
        scales, zeros = np.abs(groups).max(2) / 7, np.full(groups.shape[:2], 8)
    else:
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        scales = (high - low) / 15
        zeros = np.rint(-low / np.maximum(scales, 1e-9))
    scales = np.maximum(scales, 1e-6).astype(np.float16)
    codes = np.clip(np.rint(groups / scales[..., None].astype(np.float32)) + zeros[..., None], 0, 15)
    return codes.reshape(weight.shape).astype(np.int64), scales, zeros.astype(np.int64)


def dequantize(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> torch.Tensor:
    groups = codes.reshape(*scales.shape, -1) - zeros[..., None]
    return torch.from_numpy((groups * scales[..., None].astype(np.float32)).reshape(codes.shape)).float()


def words(nibbles: np.ndarray, axis: int, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Eight codes along an axis to an int32; bits 4 i to 4 i + 3 are code order[i]."""
    moved = np.moveaxis(nibbles, axis, -1)
    moved = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -moved.shape[-1] % 8)])
    packed = np.zeros((*moved.shape[:-1], moved.shape[-1] // 8), dtype=np.uint32)
    for place, number in enumerate(order):
        packed |= moved[..., number::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(packed.view(np.int32), -1, axis)))


def compressed(layer: str, made: Codes, *, symmetric: bool) -> Tensors:
    codes, scales, zeros = made
    tensors = {
        f"{layer}.weight_packed": words(codes, 1),
        f"{layer}.weight_scale": torch.from_numpy(scales).bfloat16(),
        f"{layer}.weight_shape": torch.tensor(codes.shape),
    }
    return tensors if symmetric else tensors | {f"{layer}.weight_zero_point": words(zeros, 0)}


def awq(layer: str, made: Codes) -> Tensors:
    codes, scales, zeros = made
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        f"{layer}.qweight": words(codes.T, 1, order),
        f"{layer}.qzeros": words(zeros.T, 1, order),
        f"{layer}.scales": torch.from_numpy(scales.T.copy()),
    }


def gptq(layer: str, made: Codes, *, v2: bool = False) -> Tensors:
    codes, scales, zeros = made
    group = codes.shape[1] // scales.shape[1]
    return {
        f"{layer}.qweight": words(codes.T, 0),
        f"{layer}.qzeros": words(zeros.T if v2 else zeros.T - 1, 1),
        f"{layer}.scales": torch.from_numpy(scales.T.copy()),
        f"{layer}.g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // group,
    }


def write(
    folder: Path,
    target: Path,
    twin: Path,
    config: dict[str, Any],
    group: int,
    pack: Callable[..., Tensors],
    *,
    shuffled: bool = False,
    **options: Any,
) -> None:
    """Write `folder` with its linear layers in 4 bits, and the twin with the values that these stand for.

    `shuffled`: the inputs of a group are anywhere in a row, as act-order leaves them.
    """
    generator = np.random.default_rng(0)
    symmetric = options.get("symmetric", False)
    packed, values = {}, {}
    for name, weight in checkpoints.read_weights(folder).items():
        if weight.dim() != 2 or any(part in name for part in KEPT):
            packed[name] = values[name] = weight
            continue
        codes, scales, zeros = quantize(weight.float().numpy(), group, symmetric=symmetric)
        if pack is compressed:
            scales = torch.from_numpy(scales).bfloat16().float().numpy().astype(np.float16)
        elif not options.get("v2"):
            zeros = np.maximum(zeros, 1)  # what is stored is 1 less in GPTQ's first version
        values[name], layer = dequantize(codes, scales, zeros), name.removesuffix(".weight")
        if shuffled:
            order = generator.permutation(codes.shape[1])
            group_of = torch.from_numpy(order // (codes.shape[1] // scales.shape[1])).int()
            codes, values[name] = codes[:, order], values[name][:, order]
        packed |= pack(layer, (codes, scales, zeros), **options)
        if shuffled:
            packed[f"{layer}.{'weight_g_idx' if pack is compressed else 'g_idx'}"] = group_of
    checkpoints.copy(folder, target, quantization_config=config)
    checkpoints.write_weights(target, packed)
    checkpoints.copy(folder, twin)
    checkpoints.write_weights(twin, values)

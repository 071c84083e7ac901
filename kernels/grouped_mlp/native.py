"""The experts in native code, a layer in one call. Contract: kernels.grouped_mlp."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.block_linear.native import is_native as has_native_blocks
from kernels.block_linear.native import pack as pack_blocks
from kernels.block_weight import BlockWeight, MixedWeight
from kernels.grouped_mlp.torch_ops import pack_with
from kernels.linear.native import pack
from kernels.quantized_weight import Input, QuantizedWeight
from kernels.types import GroupedMLP, Projection, Weight

if TYPE_CHECKING:
    from kernels.native._kernels import Experts

logger = logging.getLogger(__name__)


def grouped_mlp(
    projection: Projection,
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    experts: Iterable[tuple[Weight, Weight]],
    dtype: torch.dtype,
) -> GroupedMLP:
    """For x of one dtype: all in native code for bf16, else only the sum over experts."""
    experts = iter(experts)
    first = next(experts)
    experts = itertools.chain([first], experts)
    if dtype is not torch.bfloat16 or any(isinstance(w, QuantizedWeight) and not _is_int8(w) for w in first):
        return pack_with(native.library.combine, projection, silu_mul, experts)
    return pack_experts(experts).forward


def is_native(dtype: torch.dtype, gate_up: Weight, down: Weight) -> bool:
    """Whether `pack_experts` computes an expert as its weights say, in the dtype of x."""
    both = gate_up, down
    has_floats = all(isinstance(weight, torch.Tensor) for weight in both)
    return dtype is torch.bfloat16 and (has_floats or all(map(_is_int8, both)) or _in_blocks(*both) is not None)


def pack_experts(experts: Iterable[tuple[Weight, Weight]]) -> Experts:
    """All in native code, x in bf16; an expert whose weights are of two kinds is computed in bf16.

    forward(x, ids, weights, onto) adds to what `onto` holds; without ids, all of x goes through the first expert.
    """
    layer = native.library.Experts()
    for expert in experts:
        if blocks := _in_blocks(*expert):
            layer.add_blocks(*map(pack_blocks, blocks))
            continue
        is_int8 = all(map(_is_int8, expert))
        gate_up, down = expert if is_int8 else map(_in_bf16, expert)
        layer.add(pack(gate_up, torch.bfloat16, parts=2), pack(down, torch.bfloat16))
    return layer


def _in_blocks(gate_up: Weight, down: Weight) -> tuple[BlockWeight, BlockWeight, BlockWeight] | None:
    """Gate, up and down in blocks with one kind of input; None if one of them is of another kind of weight."""
    if not isinstance(gate_up, BlockWeight | MixedWeight) or not isinstance(down, BlockWeight):
        return None
    if not has_native_blocks(gate_up) or not has_native_blocks(down):
        return None
    size = gate_up.shape[0] // 2
    parts = (
        gate_up.parts
        if isinstance(gate_up, MixedWeight)
        else tuple(replace(gate_up, rows_OB=rows_OB) for rows_OB in gate_up.rows_OB.split(size))
    )
    if len(parts) != 2 or parts[0].shape[0] != size:
        return None
    gate, up = parts
    is_dynamic = {gate.input, up.input, down.input} == {Input.DYNAMIC}
    if is_dynamic and not native.library.share_rows(gate.format.name, up.format.name):
        _tell_of_floats(gate.format.name, up.format.name)
        is_dynamic = False
    input_ = Input.DYNAMIC if is_dynamic else Input.FLOAT
    return replace(gate, input=input_), replace(up, input=input_), replace(down, input=input_)


@functools.cache  # once, not for each layer
def _tell_of_floats(gate: str, up: str) -> None:
    logger.warning(
        "gate in %s and up in %s take inputs made int8 in different ways: these layers compute with inputs in floats, "
        "which is slower",
        gate,
        up,
    )


def _is_int8(weight: Weight) -> bool:
    """Whether the weight is multiplied in integers, on one grid for a row."""
    return isinstance(weight, QuantizedWeight) and weight.input is not Input.FLOAT


def _in_bf16(weight: Weight) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize(torch.bfloat16)

"""The experts in native code, a layer in one call. Contract: kernels.grouped_mlp."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.grouped_mlp.torch_ops import pack_with
from kernels.linear.native import pack
from kernels.quantized_weight import Input, QuantizedWeight
from kernels.types import GroupedMLP, Projection, Weight

if TYPE_CHECKING:
    from kernels.native._kernels import Experts


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
    has_floats = not isinstance(gate_up, QuantizedWeight) and not isinstance(down, QuantizedWeight)
    return dtype is torch.bfloat16 and (has_floats or (_is_int8(gate_up) and _is_int8(down)))


def pack_experts(experts: Iterable[tuple[Weight, Weight]]) -> Experts:
    """All in native code, x in bf16; an expert whose weights are of two kinds is computed in bf16.

    forward(x, ids, weights, onto) adds to what `onto` holds; without ids, all of x goes through the first expert.
    """
    layer = native.library.Experts()
    for expert in experts:
        is_int8 = all(map(_is_int8, expert))
        gate_up, down = expert if is_int8 else map(_in_bf16, expert)
        layer.add(pack(gate_up, torch.bfloat16, parts=2), pack(down, torch.bfloat16))
    return layer


def _is_int8(weight: Weight) -> bool:
    """Whether the weight is multiplied in integers."""
    return isinstance(weight, QuantizedWeight) and weight.input is not Input.FLOAT


def _in_bf16(weight: Weight) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize(torch.bfloat16)

"""The experts in native code, a layer in one call. Contract: kernels.grouped_mlp."""

import itertools
from collections.abc import Callable, Iterable
from typing import TypeGuard

import torch

from kernels import native
from kernels.grouped_mlp.torch_ops import pack_with
from kernels.linear_int8 import Input, QuantizedWeight
from kernels.types import GroupedMLP, Projection, Weight


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
        return pack_with(combine, projection, silu_mul, experts)
    return pack_experts(experts)


def is_native(dtype: torch.dtype, gate_up: Weight, down: Weight) -> bool:
    """Whether `pack_experts` computes an expert as its weights say, in the dtype of x."""
    has_floats = not isinstance(gate_up, QuantizedWeight) and not isinstance(down, QuantizedWeight)
    return dtype is torch.bfloat16 and (has_floats or (_is_int8(gate_up) and _is_int8(down)))


def pack_experts(experts: Iterable[tuple[Weight, Weight]]) -> Callable[..., torch.Tensor]:
    """All in native code, x in bf16; an expert whose weights are of two kinds is computed in bf16.

    apply(x, ids, weights, onto) adds to what `onto` holds; without ids, all of x goes through the first expert.
    """
    layer = None
    for gate_up, down in experts:
        layer = layer or native.library.Experts(*down.shape)
        if _is_int8(gate_up) and _is_int8(down):
            (in_scale, in_zero), (inner_scale, inner_zero) = gate_up.grid, down.grid
            layer.add_int8(
                gate_up.values_OI.contiguous(),
                gate_up.scale_O,
                down.values_OI.contiguous(),
                down.scale_O,
                in_scale=in_scale,
                in_zero=in_zero,
                inner_scale=inner_scale,
                inner_zero=inner_zero,
            )
        else:
            layer.add(_in_bf16(gate_up), _in_bf16(down))
    assert layer is not None, "there is at least one expert"
    forward = layer.forward

    def apply(
        x_TH: torch.Tensor,
        ids_TK: torch.Tensor | None = None,
        weights_TK: torch.Tensor | None = None,
        onto_TH: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y_TH = torch.empty_like(x_TH) if onto_TH is None else onto_TH
        forward(x_TH, ids_TK, weights_TK, y_TH, adds=onto_TH is not None)
        return y_TH

    return apply


def combine(y_PH: torch.Tensor, where_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    y_TH = y_PH.new_empty(len(where_TK), y_PH.shape[1])
    native.library.combine(y_PH, where_TK, weights_TK, y_TH)
    return y_TH


def _is_int8(weight: Weight) -> TypeGuard[QuantizedWeight]:
    """Whether the weight is multiplied in integers."""
    return isinstance(weight, QuantizedWeight) and weight.input is not Input.FLOAT


def _in_bf16(weight: Weight) -> torch.Tensor:
    if isinstance(weight, QuantizedWeight):
        return weight.dequantize(torch.bfloat16)
    return weight.contiguous()

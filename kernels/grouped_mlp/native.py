"""The experts in native code, a layer in one call for each kind of weight. Contract: kernels.grouped_mlp."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kernels.grouped_mlp.torch_ops import pack_with
from kernels.linear_int8 import Input, QuantizedWeight, StaticInput
from kernels.native import INT, POINTER, address, function, memory, plain_function

if TYPE_CHECKING:
    from kernels.types import Projection, Weight

Apply = Callable[..., torch.Tensor]
_PANEL = 16  # columns that a packed weight is made of (kernels/native/gemm.h)


class _Expert(ctypes.Structure):
    """experts.cpp's Expert."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("gate_up_scales", "down_scales", "gate_up_totals", "down_totals")),
        ("in_scale", ctypes.c_float),
        ("in_zero", ctypes.c_int32),
        ("inner_scale", ctypes.c_float),
        ("inner_zero", ctypes.c_int32),
    )


class _Kind:
    """The experts of one kind among all of a layer's: "bf16" or "int8"."""

    def __init__(self, name: str) -> None:
        self.run = plain_function(f"experts_{name}", POINTER, POINTER, POINTER, POINTER, *[INT] * 6, POINTER)
        self._pack = plain_function(f"experts_pack_{name}", POINTER, POINTER, INT, INT, POINTER, POINTER)
        self._dtype, self._tile = (torch.bfloat16, 32) if name == "bf16" else (torch.int8, 64)
        self._entries: list[_Expert] = []
        self._held: list[torch.Tensor] = []  # the memory that the entries point to

    def __bool__(self) -> bool:
        """Whether any expert is of this kind."""
        return bool(self._held)

    def table(self) -> ctypes.Array[_Expert]:
        """The entries, one after another."""
        return (_Expert * len(self._entries))(*self._entries)

    def add(self, gate_up: Weight, down: Weight) -> None:
        """Pack the next expert: gate_up [2F, H], down [H, F]."""
        gate_up_2FH, down_HF = (
            (weight.values_OI if isinstance(weight, QuantizedWeight) else weight).contiguous()
            for weight in (gate_up, down)
        )
        hidden, inter = down_HF.shape
        fields = {
            "gate_up": memory.empty(2 * _up(inter, _PANEL) * _up(hidden, self._tile), dtype=self._dtype),
            "down": memory.empty(_up(hidden, _PANEL) * _up(inter, self._tile), dtype=self._dtype),
        }
        packed = [tensor.data_ptr() for tensor in fields.values()]
        self._pack(gate_up_2FH.data_ptr(), down_HF.data_ptr(), hidden, inter, *packed)
        entry = _Expert()
        if isinstance(gate_up, QuantizedWeight) and isinstance(down, QuantizedWeight):
            fields["gate_up_scales"], fields["down_scales"] = _interleaved(gate_up.scale_O), _whole(down.scale_O)
            fields["gate_up_totals"] = _interleaved(gate_up_2FH.sum(1, dtype=torch.int32))
            fields["down_totals"] = _whole(down_HF.sum(1, dtype=torch.int32))
            entry.in_scale, entry.in_zero = _grid(gate_up)
            entry.inner_scale, entry.inner_zero = _grid(down)
        for name, tensor in fields.items():
            setattr(entry, name, tensor.data_ptr())
        self._held += fields.values()
        self._entries.append(entry)

    def skip(self) -> None:
        """Say that the next expert is of another kind."""
        self._entries.append(_Expert())


def bind(dtype: torch.dtype) -> Callable[..., Apply]:
    """`pack` for one dtype of x: all in native code for bf16, else only the sum over experts."""
    composed = functools.partial(pack_with, _combine(dtype))
    if dtype is not torch.bfloat16:
        return composed

    def pack(
        projection: Projection,
        silu_mul: Callable[..., torch.Tensor],
        experts: Iterable[tuple[Weight, Weight]],
    ) -> Apply:
        experts = iter(experts)
        first = next(experts)
        experts = itertools.chain([first], experts)
        if any(_is_weight_only(weight) for weight in first):
            return composed(projection, silu_mul, experts)
        return pack_native(experts)

    return pack


def is_native(dtype: torch.dtype, gate_up: Weight, down: Weight) -> bool:
    """Whether `pack_native` computes an expert as its weights say, in the dtype of x."""
    kinds = {isinstance(weight, QuantizedWeight) for weight in (gate_up, down)}
    return (
        dtype is torch.bfloat16 and len(kinds) == 1 and not any(_is_weight_only(weight) for weight in (gate_up, down))
    )


def pack_native(experts: Iterable[tuple[Weight, Weight]]) -> Apply:
    """All in native code, x in bf16; of an expert of two kinds, both weights become numbers.

    apply(x, ids, weights, onto) adds to what `onto` holds; without ids, all of x goes through the first expert.
    """
    bf16, int8 = _Kind("bf16"), _Kind("int8")
    hidden = inter = num_experts = 0
    for gate_up, down in experts:
        hidden, inter = down.shape
        num_experts += 1
        if all(isinstance(weight, QuantizedWeight) and not _is_weight_only(weight) for weight in (gate_up, down)):
            int8.add(gate_up, down)
            bf16.skip()
        else:
            bf16.add(_numbers(gate_up), _numbers(down))
            int8.skip()
    kinds = [(kind, kind.table()) for kind in (bf16, int8) if kind]

    def apply(
        x_TH: torch.Tensor,
        ids_TK: torch.Tensor | None = None,
        weights_TK: torch.Tensor | None = None,
        onto_TH: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x_TH = x_TH.contiguous()
        y_TH = torch.empty_like(x_TH) if onto_TH is None else onto_TH
        top_k = 1
        if ids_TK is not None and weights_TK is not None:
            ids_TK, weights_TK, top_k = ids_TK.contiguous(), weights_TK.contiguous(), ids_TK.shape[1]
        pointers = (x_TH.data_ptr(), address(ids_TK), address(weights_TK))
        adds = onto_TH is not None
        for kind, table in kinds:
            sizes = (x_TH.shape[0], top_k, num_experts, hidden, inter)
            kind.run(*pointers, ctypes.addressof(table), *sizes, adds, y_TH.data_ptr())
            adds = True  # the second kind adds to what the first brought
        return y_TH

    return apply


def _is_weight_only(weight: Weight) -> bool:
    return isinstance(weight, QuantizedWeight) and weight.input is Input.FLOAT


def _numbers(weight: Weight) -> torch.Tensor:
    return weight.dequantize(torch.bfloat16) if isinstance(weight, QuantizedWeight) else weight


def _grid(weight: QuantizedWeight) -> tuple[float, int]:
    return (weight.input.scale, weight.input.zero_point) if isinstance(weight.input, StaticInput) else (0.0, 0)


def _up(size: int, multiple: int) -> int:
    return size + -size % multiple


def _whole(x_O: torch.Tensor) -> torch.Tensor:
    """With memory for whole panels."""
    return F.pad(x_O, (0, -x_O.shape[0] % _PANEL)).contiguous()


def _interleaved(x_2F: torch.Tensor) -> torch.Tensor:
    """A panel of the first half, a panel of the second, and so on."""
    return torch.stack([_whole(half).view(-1, _PANEL) for half in x_2F.chunk(2)], dim=1).flatten()


def _combine(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    call = function("combine", dtype, POINTER, POINTER, POINTER, POINTER, INT, INT, INT)

    def combine(y_PH: torch.Tensor, where_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        num_tokens, top_k = where_TK.shape
        y_TH = y_PH.new_empty(num_tokens, y_PH.shape[1])
        where, weights = where_TK.contiguous(), weights_TK.contiguous()
        pointers = (tensor.data_ptr() for tensor in (y_PH, where, weights, y_TH))
        call(*pointers, num_tokens, top_k, y_PH.shape[1])
        return y_TH

    return combine

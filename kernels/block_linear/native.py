"""Weights in blocks, packed for native products. Contract: kernels.block_linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.block_weight import BlockWeight, MixedWeight
from kernels.quantized_weight import Input
from kernels.types import Linear

if TYPE_CHECKING:
    from kernels.native._kernels import PackedBlocks


def block_linear(weight: BlockWeight | MixedWeight, bias_O: torch.Tensor | None, out_dtype: torch.dtype) -> Linear:
    """For x in bf16 or fp32; y is in out_dtype: bf16 or fp32."""
    parts = weight.parts if isinstance(weight, MixedWeight) else (weight,)
    bias = None if bias_O is None else bias_O.float()
    return native.library.BlockLinear([pack(part) for part in parts], bias, out_dtype).forward


def pack(weight: BlockWeight) -> PackedBlocks:
    """Pack a weight whose scales are usable, into as much memory as it has."""
    is_dynamic = weight.input is Input.DYNAMIC
    return native.library.PackedBlocks(weight.rows_OB, weight.format.name, weight.in_size, is_dynamic)


def is_native(weight: BlockWeight | MixedWeight) -> bool:
    """Whether there are native products for all its formats."""
    parts = weight.parts if isinstance(weight, MixedWeight) else (weight,)
    return all(native.library.has_blocks(part.format.name) for part in parts)


def embedding(weight_VH: BlockWeight, token_ids_T: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Look up rows, in fp32, rounded to `dtype`: fp32 or bf16. Contract: kernels.embedding."""
    rows, rounds = weight_VH.rows_OB, dtype is torch.bfloat16
    return native.library.embed_blocks(rows, weight_VH.format.name, weight_VH.in_size, token_ids_T, rounds)

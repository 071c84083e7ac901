"""Cases of what a layer has beside attention: products with its weights, the router, activations, embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.kernel_case import Case, round_robin
from kernels.block_weight import FORMATS, BlockWeight
from kernels.quantized_weight import Input, quantize_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.ops import Ops
    from kernels.routing import RoutingRule
    from kernels.types import Weight


def head_linear(name: str, num_tokens: int, num_heads: int, num_in: int, num_out: int, dtype: torch.dtype) -> Case:
    """A linear layer of each head, with weights of more layers than the processor's cache holds."""
    num_bytes = num_heads * num_in * num_out * dtype.itemsize

    def make(ops: Ops) -> Callable[[], object]:
        weight_NKM = torch.randn(num_heads, num_in, num_out).to(dtype)
        copies = [ops.head_linear(weight_NKM.clone()) for _ in range(max(1, (64 << 20) // num_bytes))]
        x_TNK = torch.randn(num_tokens, num_heads, num_in).to(dtype)
        out_TNM = torch.empty(num_tokens, num_heads, num_out, dtype=dtype)
        return round_robin([(apply,) for apply in copies], lambda apply: apply(x_TNK, out_TNM))

    return Case(name, make, num_bytes, 2.0 * num_tokens * num_heads * num_in * num_out)


def _weight(num_out: int, in_size: int, kind: str) -> Weight:
    """Random bits, of values that do not matter: int8 with a dynamic input, or a format of kernels.block_weight."""
    if kind == "int8":
        return quantize_weight(torch.randn(num_out, in_size), Input.DYNAMIC)
    form = FORMATS[kind]
    rows_OB = torch.randint(0, 64, (num_out, form.num_blocks(in_size) * form.bytes), dtype=torch.uint8)
    return BlockWeight(rows_OB, form, in_size, Input.DYNAMIC)


def _num_bytes(weight: Weight) -> int:
    return weight.rows_OB.nbytes if isinstance(weight, BlockWeight) else weight.shape[0] * weight.shape[1]


def linear(name: str, num_tokens: int, num_out: int, in_size: int, kind: str, dtype: torch.dtype) -> Case:
    """Weights of more layers than the processor's cache holds."""
    weight, x_TI = _weight(num_out, in_size, kind), torch.randn(num_tokens, in_size).to(dtype)

    def make(ops: Ops) -> Callable[[], object]:
        num_layers = -(-(64 << 20) // _num_bytes(weight)) if ops.keeps_blocks else 1
        return round_robin([(ops.projection(weight, None),) for _ in range(num_layers)], lambda apply: apply(x_TI))

    return Case(name, make, _num_bytes(weight), 1.0 * num_tokens * num_out * in_size)


def experts(name: str, num_tokens: int, kind: str, dtype: torch.dtype) -> Case:
    """A layer of V2-Lite's: 6 of 64 experts for each token."""
    hidden, inter, top_k = 2048, 1408, 6
    gate_up, down = _weight(2 * inter, hidden, kind), _weight(hidden, inter, kind)
    ids_TK = torch.stack([torch.randperm(64)[:top_k] for _ in range(num_tokens)])
    weights_TK, x_TH = torch.rand(num_tokens, top_k), torch.randn(num_tokens, hidden).to(dtype)

    def make(ops: Ops) -> Callable[[], object]:
        apply = ops.grouped_mlp((gate_up, down) for _ in range(64))
        return lambda: apply(x_TH, ids_TK, weights_TK)

    num_bytes = len(ids_TK.unique()) * (_num_bytes(gate_up) + _num_bytes(down))
    return Case(name, make, num_bytes, 3.0 * num_tokens * top_k * hidden * inter)


def route(name: str, num_tokens: int, num_experts: int, rule: RoutingRule) -> Case:
    """The choice of experts."""
    logits_TE = torch.randn(num_tokens, num_experts)
    num_bytes = 4.0 * num_tokens * num_experts
    return Case(name, lambda ops: lambda: ops.routing(logits_TE, None, rule), num_bytes, 0.0)


def gelu(name: str, num_tokens: int, size: int, dtype: torch.dtype) -> Case:
    """The activation of a compression block."""
    x_TF = torch.randn(num_tokens, size).to(dtype)
    return Case(name, lambda ops: lambda: ops.gelu(x_TF), 2.0 * x_TF.nbytes, 0.0)


def modality_embedding(name: str, num_tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    """Rows of a table, each scaled and shifted by the modality of its token."""
    weight_VH, scale_MH, shift_MH = torch.randn(49152, hidden).to(dtype), torch.randn(3, hidden), torch.randn(3, hidden)
    ids_T, modalities_T = torch.randint(49152, (num_tokens,)), torch.randint(3, (num_tokens,))

    def make(ops: Ops) -> Callable[[], object]:
        return lambda: ops.modality_embedding(weight_VH, scale_MH, shift_MH, ids_T, modalities_T)

    return Case(name, make, num_tokens * hidden * (dtype.itemsize + 4.0), 0.0)


def compression(name: str, num_tokens: int, hidden: int, size: int, dtype: torch.dtype) -> Case:
    """Weights of more layers than the processor's cache holds."""
    num_layers = 64
    residual_TH, x_TH = torch.randn(num_tokens, hidden), torch.randn(num_tokens, hidden).to(dtype)

    def make(ops: Ops) -> Callable[[], object]:
        encoder = (torch.randn(size, hidden) / hidden**0.5).to(dtype), torch.zeros(size, dtype=dtype)
        decoder = (torch.randn(hidden, size) / size**0.5).to(dtype), torch.zeros(hidden, dtype=dtype)
        norm = torch.ones(hidden), torch.zeros(hidden)
        layers = [(ops.compression(encoder, decoder, norm),) for _ in range(num_layers)]
        return round_robin(layers, lambda compress: compress(x_TH, residual_TH))

    num_values = 2.0 * hidden * size
    return Case(name, make, num_values * dtype.itemsize + 2.0 * residual_TH.nbytes, 2.0 * num_tokens * num_values)

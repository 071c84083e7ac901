"""The classes that implement the operations of kernels.ops. A new backend is one more class."""

from collections.abc import Iterable
from typing import Any

import torch
from typing_extensions import override

from kernels import (
    block_linear,
    causal_attention,
    compression,
    draw,
    embedding,
    gelu,
    grouped_mlp,
    head_linear,
    latent_attention,
    lightning_indexer,
    linear,
    linear_int8,
    modality_embedding,
    native,
    rms_norm,
    rotary,
    routing,
    silu_mul,
    store_kv,
    take_rows,
)
from kernels.block_weight import BlockWeight, MixedWeight
from kernels.kv_cache import Cache
from kernels.latent_attention.native import NativeLatentAttention, NativeSparseLatentAttention
from kernels.ops import Ops
from kernels.paged_attention import LatentAttention, PagedAttention
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.native import NativeAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch_ops import TorchAttention
from kernels.quantized_weight import QuantizedWeight
from kernels.routing import RoutingRule
from kernels.types import MLP, GroupedMLP, HeadLinear, Layer, Linear, Weight

Tensor = torch.Tensor


class ReferenceOps(Ops):
    """The obvious versions, which all others are tested against."""

    name = "reference"
    keeps_blocks = True
    sums_in_fp32 = True

    def __init__(self, _: torch.dtype) -> None:
        self.paged_attention = ReferenceAttention()
        self.latent_attention = latent_attention.reference.ReferenceLatentAttention()
        self.sparse_latent_attention = self.latent_attention

    linear = staticmethod(linear.reference.linear)
    linear_int8 = staticmethod(linear_int8.reference.linear_int8)
    block_linear = staticmethod(block_linear.reference.block_linear)
    head_linear = staticmethod(head_linear.reference.head_linear)
    rms_norm = staticmethod(rms_norm.reference.rms_norm)
    rotary = staticmethod(rotary.reference.rotary)
    silu_mul = staticmethod(silu_mul.reference.silu_mul)
    store_kv = staticmethod(store_kv.reference.store_kv)
    causal_attention = staticmethod(causal_attention.reference.causal_attention)
    lightning_indexer = staticmethod(lightning_indexer.reference.lightning_indexer)
    routing = staticmethod(routing.reference.routing)
    embedding = staticmethod(embedding.reference.embedding)
    take_rows = staticmethod(take_rows.reference.take_rows)
    draw = staticmethod(draw.reference.draw)
    modality_embedding = staticmethod(modality_embedding.reference.modality_embedding)
    gelu = staticmethod(gelu.reference.gelu)
    correct = staticmethod(compression.reference.correct)

    def grouped_mlp(self, experts: Iterable[tuple[Weight, Weight]]) -> GroupedMLP:
        return grouped_mlp.reference.grouped_mlp(self.projection, self.silu_mul, experts)


class TorchOps(Ops):
    """Torch's own operators, on any device."""

    name = "torch"

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.paged_attention: PagedAttention = TorchAttention(dtype)
        self.latent_attention: LatentAttention = latent_attention.torch_ops.TorchLatentAttention(dtype)
        self.sparse_latent_attention: LatentAttention = latent_attention.torch_ops.TorchLatentAttention(dtype)

    linear = staticmethod(linear.torch_ops.linear)
    linear_int8 = staticmethod(linear_int8.torch_ops.linear_int8)
    head_linear = staticmethod(head_linear.torch_ops.head_linear)
    rms_norm = staticmethod(rms_norm.torch_ops.rms_norm)
    rotary = staticmethod(rotary.torch_ops.rotary)
    silu_mul = staticmethod(silu_mul.torch_ops.silu_mul)
    store_kv = staticmethod(store_kv.torch_ops.store_kv)
    causal_attention = staticmethod(causal_attention.torch_ops.causal_attention)
    lightning_indexer = staticmethod(lightning_indexer.torch_ops.lightning_indexer)
    routing = staticmethod(routing.torch_ops.routing)
    embedding = staticmethod(embedding.reference.embedding)
    take_rows = staticmethod(take_rows.reference.take_rows)
    draw = staticmethod(draw.torch_ops.draw)
    modality_embedding = staticmethod(modality_embedding.reference.modality_embedding)
    gelu = staticmethod(gelu.torch_ops.gelu)
    correct = staticmethod(compression.torch_ops.correct)

    def block_linear(
        self, weight: BlockWeight | MixedWeight, bias_O: Tensor | None, out_dtype: torch.dtype | None = None
    ) -> Linear:
        return self.linear(weight.dequantize(self._dtype), bias_O, out_dtype)

    def grouped_mlp(self, experts: Iterable[tuple[Weight, Weight]]) -> GroupedMLP:
        return grouped_mlp.torch_ops.grouped_mlp(self.projection, self.silu_mul, experts)


class NativeOps(TorchOps):
    """This project's C++ on a CPU; torch's operators for what it lacks (the indexer in prefill chunks)."""

    name = "native"
    can_capture = True
    has_own_threads = True
    keeps_blocks = True
    sums_in_fp32 = True

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.paged_attention = NativeAttention()
        self.latent_attention = NativeLatentAttention()
        self.sparse_latent_attention = NativeSparseLatentAttention()

    @override
    def linear(self, weight_OI: Tensor, bias_O: Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
        return linear.native.linear(weight_OI, bias_O, self._dtype, out_dtype or weight_OI.dtype)

    @override
    def linear_int8(
        self, weight: QuantizedWeight, bias_O: Tensor | None, out_dtype: torch.dtype | None = None
    ) -> Linear:
        return linear.native.linear(weight, bias_O, self._dtype, out_dtype or self._dtype)

    @override
    def block_linear(
        self, weight: BlockWeight | MixedWeight, bias_O: Tensor | None, out_dtype: torch.dtype | None = None
    ) -> Linear:
        if not block_linear.native.is_native(weight):
            return super().block_linear(weight, bias_O, out_dtype)
        return block_linear.native.block_linear(weight, bias_O, out_dtype or self._dtype)

    @override
    def head_linear(self, weight_NKM: Tensor) -> HeadLinear:
        return native.library.HeadLinear(weight_NKM.contiguous()).forward

    @override
    def mlp(self, gate_up: Layer, down: Layer) -> MLP:
        weights = gate_up[0], down[0]
        if gate_up[1] is not None or down[1] is not None or not grouped_mlp.native.is_native(self._dtype, *weights):
            return super().mlp(gate_up, down)
        forward = grouped_mlp.native.pack_experts([weights]).forward  # the only expert of a mixture
        return lambda x_TH, onto_TH=None: forward(x_TH, onto_TH=onto_TH)

    @override
    def grouped_mlp(self, experts: Iterable[tuple[Weight, Weight]]) -> GroupedMLP:
        return grouped_mlp.native.grouped_mlp(self.projection, self.silu_mul, experts, self._dtype)

    @override
    def lightning_indexer(self, q_THI: Tensor, weights_TH: Tensor, cache: Tensor, plan: Any, topk: int) -> Any:
        return lightning_indexer.native.lightning_indexer(q_THI, weights_TH, cache, plan, topk)

    @override
    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float, residual_TH: Tensor | None = None) -> Tensor:
        return native.library.rms_norm(x_TH, weight_H, eps, residual_TH)

    @override
    def rotary(self, x_TND: Tensor, cos_TD: Tensor, sin_TD: Tensor, y_TND: Tensor | None = None) -> Tensor:
        return native.library.rotary(x_TND, cos_TD, sin_TD, y_TND)

    @override
    def silu_mul(self, gate_up_TF2: Tensor) -> Tensor:
        return native.library.silu_mul(gate_up_TF2)

    @override
    def rotate_and_store(
        self, qkv_TXD: Tensor, cos_TD: Tensor, sin_TD: Tensor, k_cache: Cache, v_cache: Cache, slot_mapping_T: Tensor
    ) -> Tensor:
        return native.library.rotate_and_store(qkv_TXD, cos_TD, sin_TD, k_cache, v_cache, slot_mapping_T)

    @override
    def store_latents(
        self,
        x_TY: Tensor,
        weight_C: Tensor,
        eps: float,
        cos_TR: Tensor,
        sin_TR: Tensor,
        cache: Cache,
        slot_mapping_T: Tensor,
    ) -> None:
        native.library.store_latents(x_TY, weight_C, eps, cos_TR, sin_TR, cache, slot_mapping_T)

    @override
    def causal_attention(self, q_QNX: Tensor, k_LNX: Tensor, v_LNV: Tensor, scale: float) -> Tensor:
        return native.library.causal_attention(q_QNX, k_LNX, v_LNV, scale)

    @override
    def routing(self, logits_TE: Tensor, bias_E: Tensor | None, rule: RoutingRule) -> tuple[Tensor, Tensor]:
        return native.library.routing(logits_TE, bias_E, **rule._asdict())

    @override
    def embedding(self, weight_VH: Tensor | BlockWeight, token_ids_T: Tensor) -> Tensor:
        if isinstance(weight_VH, BlockWeight):
            return block_linear.native.embedding(weight_VH, token_ids_T, self._dtype)
        return native.library.embedding(weight_VH, token_ids_T)

    @override
    def modality_embedding(
        self, weight_VH: Tensor, scale_MH: Tensor, shift_MH: Tensor, token_ids_T: Tensor, modality_ids_T: Tensor | None
    ) -> Tensor:
        return native.library.modality_embedding(weight_VH, scale_MH, shift_MH, token_ids_T, modality_ids_T)

    @override
    def gelu(self, x_TF: Tensor) -> Tensor:
        return native.library.gelu(x_TF)

    @override
    def correct(self, x_TH: Tensor, residual_TH: Tensor, detour: Linear, norm: tuple[Tensor, Tensor]) -> None:
        compression.native.correct(x_TH, residual_TH, detour, norm)

    @override
    def take_rows(self, x_NX: Tensor, rows_R: Tensor) -> Tensor:
        return native.library.take_rows(x_NX, rows_R)

    @override
    def draw(self, logits_RV: Tensor, temperatures: list[float], uniforms: list[float]) -> list[int]:
        return native.library.draw(logits_RV, temperatures, uniforms)


class FlashAttnOps(TorchOps):
    """Torch's operators with flash-attn's attention."""

    name = "flash-attn"
    reads_quantized_cache = False

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.paged_attention = FlashAttention()

"""The operations that models compute with: the contract of what implements them (kernels.backends).

mypy refuses a backend that lacks an operation, misspells one or changes its types. What each operation computes is said
in kernels/<operation>/__init__.py.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch

from kernels import mlp, rotate_and_store, store_latents
from kernels.block_weight import BlockWeight, MixedWeight
from kernels.kv_cache import Cache
from kernels.paged_attention import LatentAttention, PagedAttention
from kernels.quantized_weight import QuantizedWeight
from kernels.routing import RoutingRule
from kernels.types import MLP, Compression, GroupedMLP, HeadLinear, Layer, Linear, Weight

Tensor = torch.Tensor


class Ops(Protocol):
    """One implementation of each operation.

    Attributes:
        name: as --kernels says it.
        sparse_latent_attention: latent attention over the positions that `lightning_indexer` selects.
        can_capture: calls can be captured and replayed (kernels.native.capture).
        has_own_threads: operations compute on threads that are not torch's.
        reads_quantized_cache: attention takes an Int8Cache and a PackedCache.
        keeps_blocks: a weight in blocks stays packed; else it is expanded to the activations' dtype.
        sums_in_fp32: a `linear` with bf16 operands and fp32 results rounds neither its products nor its sums to bf16.
    """

    name: str
    can_capture: bool = False
    has_own_threads: bool = False
    reads_quantized_cache: bool = True
    keeps_blocks: bool = False
    sums_in_fp32: bool = False
    paged_attention: PagedAttention
    latent_attention: LatentAttention
    sparse_latent_attention: LatentAttention

    def __init__(self, dtype: torch.dtype) -> None:
        """Make the operations for activations of one dtype."""

    def linear(self, weight_OI: Tensor, bias_O: Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
        """Pack the weight of a linear layer."""

    def linear_int8(
        self, weight: QuantizedWeight, bias_O: Tensor | None, out_dtype: torch.dtype | None = None
    ) -> Linear:
        """Pack the int8 weight of a linear layer."""

    def block_linear(
        self, weight: BlockWeight | MixedWeight, bias_O: Tensor | None, out_dtype: torch.dtype | None = None
    ) -> Linear:
        """Pack the weight of a linear layer that is in blocks."""

    def head_linear(self, weight_NKM: Tensor) -> HeadLinear:
        """Pack the weights of a linear layer that each head has for itself."""

    def mlp(self, gate_up: Layer, down: Layer) -> MLP:
        """Pack a feed-forward block; composed of other operations, unless a backend has its own."""
        return mlp.reference.mlp(self.projection, self.silu_mul, gate_up, down)

    def grouped_mlp(self, experts: Iterable[tuple[Weight, Weight]]) -> GroupedMLP:
        """Pack the routed experts of a layer."""

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float, residual_TH: Tensor | None = None) -> Tensor:
        """Normalise, after adding x to the residual stream in place where there is one."""

    def rotary(self, x_TND: Tensor, cos_TD: Tensor, sin_TD: Tensor, y_TND: Tensor | None = None) -> Tensor:
        """Apply rotary position embedding."""

    def silu_mul(self, gate_up_TF2: Tensor) -> Tensor:
        """Apply the gated activation."""

    def store_kv(self, x_TKD: Tensor, cache: Tensor, slot_mapping_T: Tensor) -> None:
        """Write rows into the paged cache as they are."""

    def rotate_and_store(
        self, qkv_TXD: Tensor, cos_TD: Tensor, sin_TD: Tensor, k_cache: Cache, v_cache: Cache, slot_mapping_T: Tensor
    ) -> Tensor:
        """Rotate queries and keys, write keys and values into the paged cache, return the queries; composed, as mlp."""
        arguments = qkv_TXD, cos_TD, sin_TD, k_cache, v_cache, slot_mapping_T
        return rotate_and_store.reference.rotate_and_store(self.rotary, self.store_kv, *arguments)

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
        """Normalise latents, rotate their keys, write both into the paged cache; composed, as mlp."""
        arguments = x_TY, weight_C, eps, cos_TR, sin_TR, cache, slot_mapping_T
        store_latents.reference.store_latents(self.rms_norm, self.rotary, self.store_kv, *arguments)

    def causal_attention(self, q_QNX: Tensor, k_LNX: Tensor, v_LNV: Tensor, scale: float) -> Tensor:
        """Attend over keys and values that lie in a row."""

    def lightning_indexer(self, q_THI: Tensor, weights_TH: Tensor, cache: Tensor, plan: Any, topk: int) -> Any:
        """Select the positions that each query attends to."""

    def routing(self, logits_TE: Tensor, bias_E: Tensor | None, rule: RoutingRule) -> tuple[Tensor, Tensor]:
        """Choose each token's experts and weigh them."""

    def embedding(self, weight_VH: Tensor | BlockWeight, token_ids_T: Tensor) -> Tensor:
        """Look embeddings up, in fp32: the residual stream's beginning."""

    def modality_embedding(
        self, weight_VH: Tensor, scale_MH: Tensor, shift_MH: Tensor, token_ids_T: Tensor, modality_ids_T: Tensor | None
    ) -> Tensor:
        """Look embeddings up, and scale and shift each by its token's modality; in fp32, as embedding."""

    def gelu(self, x_TF: Tensor) -> Tensor:
        """Apply the activation, by erf."""

    def compression(self, encoder: Layer, decoder: Layer, norm: tuple[Tensor, Tensor]) -> Compression:
        """Pack a compression block: a detour of other operations, and `correct` around it."""
        encode, decode = self.projection(*encoder), self.projection(*decoder, torch.float32)

        def detour(h_TH: Tensor) -> Tensor:
            return decode(self.gelu(encode(h_TH)))

        return lambda x_TH, residual_TH: self.correct(x_TH, residual_TH, detour, norm)

    def correct(self, x_TH: Tensor, residual_TH: Tensor, detour: Linear, norm: tuple[Tensor, Tensor]) -> None:
        """Correct the residual stream by a compression block's detour, and normalise it, in place."""

    def take_rows(self, x_NX: Tensor, rows_R: Tensor) -> Tensor:
        """Gather rows."""

    def draw(self, logits_RV: Tensor, temperatures: list[float], uniforms: list[float]) -> list[int]:
        """Choose one token for each row of logits."""

    def projection(self, weight: Weight, bias_O: Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
        """Pack the weight of a linear layer, of any kind."""
        if isinstance(weight, QuantizedWeight):
            return self.linear_int8(weight, bias_O, out_dtype)
        if isinstance(weight, BlockWeight | MixedWeight):
            return self.block_linear(weight, bias_O, out_dtype)
        return self.linear(weight, bias_O, out_dtype)

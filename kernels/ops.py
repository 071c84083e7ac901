"""The operations that models compute with, and the classes that implement them: one is chosen at start.

`Ops` is the contract: mypy refuses a backend that lacks an operation, misspells one or changes its types. What each
operation computes is said in kernels/<operation>/__init__.py. A new backend is one more class.
"""

import importlib.util
import logging
from collections.abc import Iterable
from typing import Any, Protocol

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
    mlp,
    modality_embedding,
    native,
    rms_norm,
    rotary,
    rotate_and_store,
    routing,
    silu_mul,
    store_kv,
    store_latents,
    take_rows,
)
from kernels.block_weight import BlockWeight, MixedWeight
from kernels.kv_cache import Cache
from kernels.latent_attention.native import NativeLatentAttention, NativeSparseLatentAttention
from kernels.linear_int8 import QuantizedWeight
from kernels.paged_attention import LatentAttention, PagedAttention
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.native import NativeAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch_ops import TorchAttention
from kernels.routing import RoutingRule
from kernels.types import MLP, Compression, GroupedMLP, HeadLinear, Layer, Linear, Weight

logger = logging.getLogger(__name__)
Tensor = torch.Tensor


class KernelUnavailableError(ValueError):
    """A backend was asked for by name and this machine cannot run it."""


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


BACKENDS: dict[str, type[Ops]] = {  # written out, so that mypy sees what a class lacks
    "reference": ReferenceOps,
    "torch": TorchOps,
    "native": NativeOps,
    "flash-attn": FlashAttnOps,
}


def resolve(choice: str, device: torch.device, dtype: torch.dtype) -> Ops:
    """Make the operations: `auto`, or a backend by name.

    Raises:
        KernelUnavailableError: the named backend cannot run here; auto falls back to torch with a warning instead.
    """
    obstacles = {"native": native.obstacle(device, dtype), "flash-attn": _flash_obstacle(device, dtype)}
    if choice == "auto":
        choice = "flash-attn" if device.type == "cuda" else "native"
        if obstacle := obstacles[choice]:
            logger.warning("the %s kernels cannot run, torch's operators do instead: %s", choice, obstacle)
            choice = "torch"
    elif obstacle := obstacles.get(choice):
        raise KernelUnavailableError(f"--kernels {choice} cannot run here: {obstacle}")
    return BACKENDS[choice](dtype)


def _flash_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs a GPU, and the device is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16, and the dtype is {dtype}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed (pip install 'deepseek-serve[gpu]')"
    return None

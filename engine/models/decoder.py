"""The decoder of the whole family: embedding, layers of attention and MLP with pre-normalisation, final norm, head.

What differs between its members is in the parts: attention is grouped-query (Llama, DeepSeek v1) or latent (V2 on),
the MLP of a layer is dense or a mixture of experts.

A step is computed in two parts: `mix` fills the caches for all of its tokens, up to what the last layer's attention
brings; `logits` is the rest, for those tokens alone whose logits are wanted.

Shapes: T tokens of the step, H hidden, X what attention brings of all heads, V vocab, R rows that need logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from engine.models.attention import GroupedQueryAttention
from engine.models.layers import MLP, Builder
from engine.models.mla import MultiHeadLatentAttention
from engine.models.moe import MixtureOfExperts
from engine.models.rope import RotaryTable, inverse_frequencies
from engine.models.work import Work, step_work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.loading.weights import Weights
    from engine.models.config import ModelConfig
    from kernels.kv_cache import Cache
    from kernels.paged_attention import AttentionBatch, LatentAttention, PagedAttention
    from kernels.table import KernelTable


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """A step as the layers see it: made once by the model runner, passed to every layer.

    Attributes:
        token_ids_T: int64.
        cos_TD: rotary cosines of each token's position, fp32; sin_TD likewise.
        slot_mapping_T: the slot of the cache that each token's entry goes to, int64.
        attention_plan: what `Decoder.plan` returned.
    """

    token_ids_T: torch.Tensor
    cos_TD: torch.Tensor
    sin_TD: torch.Tensor
    slot_mapping_T: torch.Tensor
    attention_plan: Any

    def first(self, num_tokens: int) -> ModelBatch:
        """Views of its first tokens, with the plan as it is."""
        return replace(self, **{name: getattr(self, name)[:num_tokens] for name in _OF_TOKENS})

    def become(self, other: ModelBatch) -> None:
        """Hold what another batch of as many tokens holds, in the same places; but for the plan."""
        for name in _OF_TOKENS:
            getattr(self, name).copy_(getattr(other, name))


_OF_TOKENS = ("token_ids_T", "cos_TD", "sin_TD", "slot_mapping_T")  # a batch's tensors


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, build: Builder, number: int) -> None:
        config, prefix = build.config, f"model.layers.{number}"
        self._kernels, self._eps = build.kernels, config.rms_norm_eps
        self._input_norm = build.norm(f"{prefix}.input_layernorm")
        self._attention = attention_class(config)(build, f"{prefix}.self_attn")
        self._post_attention_norm = build.norm(f"{prefix}.post_attention_layernorm")
        self._mlp: MLP | MixtureOfExperts
        if config.moe is not None and config.moe.is_sparse(number):
            self._mlp = MixtureOfExperts(build, f"{prefix}.mlp")
        else:
            self._mlp = MLP(build, f"{prefix}.mlp", config.intermediate_size)

    def forward(
        self, x_TH: torch.Tensor, residual_TH: torch.Tensor, batch: ModelBatch, cache: tuple[Cache, ...]
    ) -> torch.Tensor:
        """Adds x_TH, what the layer before brought, to the residual stream in place; returns what this one brings."""
        return self.finish(self.mix(x_TH, residual_TH, batch, cache), residual_TH)

    def mix(
        self, x_TH: torch.Tensor, residual_TH: torch.Tensor, batch: ModelBatch, cache: tuple[Cache, ...]
    ) -> torch.Tensor:
        """`forward` up to the attention of all heads, [T, X]: all that needs more of a step than a token itself."""
        x_TH = self._kernels.add_rms_norm(x_TH, residual_TH, self._input_norm, self._eps)
        return self._attention.mix(x_TH, batch, cache)

    def finish(self, mixed_RX: torch.Tensor, residual_RH: torch.Tensor) -> torch.Tensor:
        """The rest of `forward`, for any of its rows."""
        x_RH = self._attention.project(mixed_RX)
        x_RH = self._kernels.add_rms_norm(x_RH, residual_RH, self._post_attention_norm, self._eps)
        return self._mlp.forward(x_RH)


class Decoder:
    """A whole model; built from a checkpoint's tensors, which keep their names."""

    def __init__(self, config: ModelConfig, weights: Weights, kernels: KernelTable, max_seq_len: int) -> None:
        """Build and load.

        Args:
            config: the model's shape.
            weights: its tensors; every one is taken, or the checkpoint is refused (Weights.finish).
            kernels: the operations to compute with.
            max_seq_len: positions to tabulate for RoPE.
        """
        build = Builder(config, weights, kernels)
        self.config, self.kernels, self._weight_size = config, kernels, weights.linear_size
        self._embedding_VH = weights.take("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
        self._layers = [DecoderLayer(build, i) for i in range(config.num_hidden_layers)]
        self._norm = build.norm("model.norm")
        if config.tie_word_embeddings:
            weights.ignore("lm_head.weight")
            head = weights.as_linear("lm_head", self._embedding_VH)
        else:
            head = weights.take_linear("lm_head", (config.vocab_size, config.hidden_size))
        self._head = kernels.logits(head)
        # Multi-token prediction is not part of the main model.
        weights.ignore_layers(config.num_hidden_layers, config.num_nextn_predict_layers)
        self.rotary_table = make_rotary_table(config, weights, max_seq_len)
        weights.finish()

    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes [heads, values] of what one token leaves in one layer's cache."""
        return attention_class(self.config).cache_shapes(self.config)

    def cache_scales(self) -> tuple[int, ...]:
        """How many scales each of these has for a token and head, where it is cached as int8."""
        return attention_class(self.config).cache_scales(self.config)

    @property
    def attention(self) -> PagedAttention | LatentAttention:
        """The attention kernel that every layer uses."""
        if self.config.mla is None:
            return self.kernels.attention
        return self.kernels.latent_attention if self.config.indexer is None else self.kernels.selective_attention

    def plan(self, batch: AttentionBatch) -> Any:
        """What the attention of all layers shares in a step."""
        return attention_class(self.config).plan(self.config, self.kernels, batch)

    def work(self, query_lens: Sequence[int], context_lens: Sequence[int], num_logits: int, entry_size: float) -> Work:
        """What a step must compute and read at least (engine.models.work)."""
        return step_work(
            self.config, query_lens, context_lens, num_logits, weight_size=self._weight_size, entry_size=entry_size
        )

    def embed(
        self, token_ids_T: torch.Tensor, x_TH: torch.Tensor | None = None, residual_TH: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the first layer starts from, in new tensors or those given: embeddings, and a residual stream of 0."""
        if x_TH is None or residual_TH is None:
            x_TH = self._embedding_VH.index_select(0, token_ids_T)
            return x_TH, torch.zeros(x_TH.shape, dtype=torch.float32, device=x_TH.device)
        torch.index_select(self._embedding_VH, 0, token_ids_T, out=x_TH)
        return x_TH, residual_TH.zero_()

    def mix(
        self, x_TH: torch.Tensor, residual_TH: torch.Tensor, batch: ModelBatch, caches: list[tuple[Cache, ...]]
    ) -> torch.Tensor:
        """Fill each layer's cache, from what `embed` returned; what the last attention brings, [T, X].

        The residual stream is then that before it, and x_TH used up.
        """
        for layer, cache in zip(self._layers[:-1], caches[:-1], strict=True):
            x_TH = layer.forward(x_TH, residual_TH, batch, cache)
        return self._layers[-1].mix(x_TH, residual_TH, batch, caches[-1])

    def logits(self, mixed_RX: torch.Tensor, residual_RH: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] in fp32 of any rows of what `mix` brought; uses up their residual stream."""
        x_RH = self._layers[-1].finish(mixed_RX, residual_RH)
        return self._head(self.kernels.add_rms_norm(x_RH, residual_RH, self._norm, self.config.rms_norm_eps))


def attention_class(config: ModelConfig) -> type[GroupedQueryAttention] | type[MultiHeadLatentAttention]:
    """The kind of attention that every layer has."""
    return GroupedQueryAttention if config.mla is None else MultiHeadLatentAttention


def make_rotary_table(config: ModelConfig, weights: Weights, max_seq_len: int) -> RotaryTable:
    """Cos and sin of so many positions; takes the checkpoint's factors where it has them."""
    factors = None
    if config.rope_scaling.get("rope_type") == "gguf_factors":
        factors = weights.take("rope_freqs.weight", (config.rotary_dim // 2,), torch.float32)
    inv_freq, attention_factor = inverse_frequencies(
        config.rotary_dim,
        config.rope_theta,
        config.rope_scaling,
        config.max_position_embeddings,
        max_seq_len,
        factors,
    )
    return RotaryTable(inv_freq.to(weights.device), attention_factor, max_seq_len)

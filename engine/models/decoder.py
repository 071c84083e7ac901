"""The decoder of all families: embedding, layers of attention and MLP with pre-normalisation, final norm, head.

In Llama's and DeepSeek's family attention is grouped-query (Llama, DeepSeek v1) or latent (V2 and later); the MLP of a
layer is dense or a mixture of experts. Another family is a subclass with classes of its own (engine.models.registry).

Shapes: T tokens of the step, H hidden, V vocab, R rows (tokens) whose hidden states are wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from engine.models.attention import GroupedQueryAttention
from engine.models.embedding import Embedding
from engine.models.layers import MLP, Builder
from engine.models.mla import MultiHeadLatentAttention
from engine.models.moe import MixtureOfExperts
from engine.models.rope import RotaryTable, inverse_frequencies

if TYPE_CHECKING:
    from engine.loading.weights import Weights
    from engine.model_batch import ModelBatch
    from engine.models.config import ModelConfig
    from kernels.kv_cache import Cache
    from kernels.ops import Ops
    from kernels.paged_attention import AttentionBatch, LatentAttention, PagedAttention
    from kernels.types import Linear


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, build: Builder, number: int) -> None:
        config, prefix = build.config, f"model.layers.{number}"
        self._ops, self._eps = build.ops, config.rms_norm_eps
        self._input_norm = build.norm(f"{prefix}.input_layernorm")
        self._attention = attention_class(config)(build, f"{prefix}.self_attn")
        self._view = config.cache_groups.view_of[number]
        self._post_attention_norm = build.norm(f"{prefix}.post_attention_layernorm")
        self._mlp: MLP | MixtureOfExperts
        if config.moe is not None and config.moe.is_sparse(number):
            self._mlp = MixtureOfExperts(build, f"{prefix}.mlp")
        else:
            self._mlp = MLP(build, f"{prefix}.mlp", config.intermediate_size)

    def forward(
        self,
        x_TH: torch.Tensor | None,
        residual_TH: torch.Tensor,
        batch: ModelBatch,
        kv_cache: tuple[Cache, ...],
        rows_R: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """This layer's output, [R, H], and the residual stream without it, [R, H]; None if the stream has it already.

        x is the output of the layer before, None for the first layer; it is added in place to the residual stream,
        which is fp32. The cache gets the entries of all T tokens; what follows attention is computed for the R wanted
        ones (None: all).
        """
        x_TH = _add_and_norm(self._ops, x_TH, residual_TH, self._input_norm, self._eps)
        x_RH = self._attention.forward(x_TH, batch, batch.views[self._view], kv_cache, rows_R)
        residual_RH = residual_TH if rows_R is None else self._ops.take_rows(residual_TH, rows_R)
        x_RH = self._ops.rms_norm(x_RH, self._post_attention_norm, self._eps, residual_RH)
        return self._mlp.forward(x_RH), residual_RH


class Decoder:
    """A whole model, built from a checkpoint's tensors.

    Attributes:
        heads: beside the one over the vocabulary, "classification" and "reasoning" as far as the checkpoint has them
            (ModelConfig.task_heads): hidden states [R, H] of `forward` -> logits [R, labels] in fp32.
        weight_size, int8_share: of linear layers' weights, for engine.models.work.
    """

    embedding_class: type[Embedding] = Embedding
    layer_class: type[DecoderLayer] = DecoderLayer

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, max_seq_len: int) -> None:
        """Build and load; a checkpoint with missing or unused tensors is refused (Weights.finish)."""
        build = Builder(config, weights, ops)
        self.config, self.ops = config, ops
        self._embedding = self.embedding_class(build)
        # The head is mostly the largest weight: a load peaks lowest if it is packed before the others are there.
        self._head = self._build_vocabulary_head(build) if config.task_heads.generates else None
        self._layers = [self.layer_class(build, i) for i in range(config.num_hidden_layers)]
        self._norm = build.norm("model.norm")
        self.heads = self._build_heads(build)
        # Multi-token prediction is not part of the main model.
        weights.ignore_layers(config.num_hidden_layers, config.num_nextn_predict_layers)
        self.rotary_table = make_rotary_table(config, weights, max_seq_len)
        weights.finish()
        self.weight_size, self.int8_share = weights.linear_size, weights.int8_share

    @property
    def attention(self) -> PagedAttention | LatentAttention:
        """The attention kernel that every layer uses."""
        if self.config.mla is None:
            return self.ops.paged_attention
        return self.ops.latent_attention if self.config.indexer is None else self.ops.sparse_latent_attention

    def plan(self, batches: list[AttentionBatch]) -> list[Any]:
        """The attention plans of a step, by view (engine.cache_groups); the batches are by group."""
        return plan_attention(self.config, self.ops, batches)

    def forward(
        self, batch: ModelBatch, kv_caches: list[tuple[Cache, ...]], rows_R: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute one step: hidden states after the final norm, [R, H], of the wanted rows, int64 (None: all).

        Each layer's cache, one of the pool's `kv_caches`, gets the entries of all T tokens. The last layer computes
        what follows its attention for the wanted tokens alone.
        """
        x: torch.Tensor | None = None
        residual = self._embedding.forward(batch)
        caches = [kv_caches[i] for i in self.config.cache_groups.pool_layer_of]
        for layer, kv_cache in zip(self._layers[:-1], caches[:-1], strict=True):
            x, residual = layer.forward(x, residual, batch, kv_cache)
        x, residual = self._layers[-1].forward(x, residual, batch, caches[-1], rows_R)
        return _add_and_norm(self.ops, x, residual, self._norm, self.config.rms_norm_eps)

    def logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states, [R, V] in fp32."""
        assert self._head is not None, "a model that generates nothing"
        return self._head(hidden_RH)

    def _build_vocabulary_head(self, build: Builder) -> Linear:
        config, weights = build.config, build.weights
        if config.tie_word_embeddings:
            weights.ignore("lm_head.weight")
            head = weights.as_linear("lm_head", self._embedding.weight_VH)
        else:
            head = weights.take_linear("lm_head", (config.vocab_size, config.hidden_size))
        return build.ops.projection(head, None, torch.float32)  # in bf16 many logits would be equal

    def _build_heads(self, build: Builder) -> dict[str, Linear]:
        """The heads beside it; another family names their tensors otherwise."""
        num_labels = len(build.config.task_heads.labels)
        return {"classification": build.task_head("score", num_labels, bias=False)} if num_labels else {}


def _add_and_norm(
    ops: Ops, x_TH: torch.Tensor | None, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> torch.Tensor:
    """The norm of the residual stream, after x has been added to it in place where there is an x."""
    if x_TH is None:
        return ops.rms_norm(residual_TH, weight_H, eps)
    return ops.rms_norm(x_TH, weight_H, eps, residual_TH)


def attention_class(config: ModelConfig) -> type[GroupedQueryAttention] | type[MultiHeadLatentAttention]:
    """The class of every layer's attention."""
    return GroupedQueryAttention if config.mla is None else MultiHeadLatentAttention


def plan_attention(config: ModelConfig, ops: Ops, batches: list[AttentionBatch]) -> list[Any]:
    """Plans by view, of batches by group."""
    attention = attention_class(config)
    return [attention.plan(config, ops, batches[view.group], view.pattern) for view in config.cache_groups.views]


def make_rotary_table(config: ModelConfig, weights: Weights, max_seq_len: int) -> RotaryTable:
    """The table of cos and sin; uses the checkpoint's own factors if it has them (GGUF)."""
    factors = None
    if config.rope_scaling.get("rope_type") == "gguf_factors":
        factors = weights.take("rope_freqs.weight", (config.rotary_dim // 2,), torch.float32)
    inv_freq, attention_factor = inverse_frequencies(config, max_seq_len, factors)
    return RotaryTable(inv_freq.to(weights.device), attention_factor)

"""A model's shape, with the names of config.json (DeepSeek's names). Imports no torch.

engine.models.registry finds the reader of a config.json; engine.models.gguf_config reads GGUF metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.cache_groups import CacheGroups, group_layers
from engine.errors import ConfigError, ModelError
from kernels.attention_pattern import FULL, AttentionPattern

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.engine_info import LabelActivation, Task
    from engine.models.fp8_scheme import FP8Scheme
    from engine.models.int8_scheme import Int8Scheme
    from engine.models.packed_scheme import PackedScheme


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        q_lora_rank: width of the compressed query; None if queries are not compressed.
        kv_lora_rank: width of the cached latent, from which keys and values are computed.
        qk_nope_head_dim: query and key dimensions of a head without rotary position.
        qk_rope_head_dim: query dimensions of a head with rotary position; all heads share one cached rotary key.
        v_head_dim: value dimensions of a head.
        rope_interleave: RoPE pairs neighbouring dimensions, as in all released models; else halves.
        can_expand: long chunks of prompts may be attended in the expanded form, which is faster and rounds differently.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_interleave: bool = True
    can_expand: bool = True

    def __post_init__(self) -> None:
        if self.qk_nope_head_dim < 1:
            raise ModelError(
                f"qk_nope_head_dim (a key's length less its rotary part) is {self.qk_nope_head_dim}; expected 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class IndexerConfig:
    """The lightning indexer of DeepSeek-V3.2, which selects the `index_topk` positions that a query attends to."""

    index_n_heads: int
    index_head_dim: int
    index_topk: int


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts (DeepSeekMoE, arXiv 2401.06066).

    Attributes:
        first_k_dense_replace: number of layers at the start that have a dense MLP instead.
        moe_layer_freq: after them, every layer whose number is a multiple of this has experts.
        scoring_func: "softmax" or "sigmoid".
        topk_method: "greedy", "group_limited_greedy" (a group's score is its best expert's) or "noaux_tc" (a group's
            score is the sum of its best two; a correction bias affects the choice, not the weights).
        router_hidden_size: width of a router of two layers (DynamicMoE); None for a router of one (DeepSeek).
    """

    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    moe_intermediate_size: int
    first_k_dense_replace: int
    moe_layer_freq: int = 1
    scoring_func: str = "softmax"
    topk_method: str = "greedy"
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    router_hidden_size: int | None = None

    def __post_init__(self) -> None:
        if self.n_routed_experts % self.n_group:
            raise ModelError(
                f"n_routed_experts ({self.n_routed_experts}) is not a multiple of n_group ({self.n_group})"
            )
        if self.topk_group > self.n_group:
            raise ModelError(f"topk_group ({self.topk_group}) exceeds n_group ({self.n_group})")
        eligible = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > (self.n_routed_experts if self.topk_method == "greedy" else eligible):
            raise ModelError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds the experts of topk_group groups"
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer has experts."""
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """DynamicMoE's compression blocks: the width that hidden states are brought to, and the layers that have one."""

    size: int
    layers: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class TaskHeads:
    """Which heads stand on the final norm; hidden states, as embeddings, need none.

    Attributes:
        generates: whether there is a head over the vocabulary.
        labels: names of a classification head's classes; empty if there is no such head.
        label_activation: what makes scores of their logits (engine.protocol.EngineInfo).
        has_reasoning: whether a head values how sound the text so far is.
    """

    generates: bool = True
    labels: tuple[str, ...] = ()
    label_activation: LabelActivation = "softmax"
    has_reasoning: bool = False

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What a model with these heads can do."""
        can: dict[Task, bool] = {
            "generate": self.generates,
            "embed": True,
            "classify": bool(self.labels),
            "value": self.has_reasoning,
        }
        return tuple(task for task, is_there in can.items() if is_there)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder.

    Attributes:
        head_dim: of grouped-query attention; not used with MLA.
        rope_scaling: the checkpoint's own dictionary, with "rope_type"; empty for plain RoPE.
        mla, indexer, moe, compression: None if the model does not have this part.
        attention_patterns: which positions the queries of each layer see; if empty, all up to their own.
        num_nextn_predict_layers: layers for multi-token prediction after the last one. The main model ignores them.
        int8: which layers are stored in int8, and how they quantise inputs; None if no layer is.
        packed: which layers are stored in 4 bits, and how; None if no layer is.
        fp8: which layers are stored in FP8 as compressed-tensors has it; None if no layer is.
        weight_block_size: rows and columns that share a scale in other FP8 weights.
        eos_token_ids: tokens that end a sequence.
        dtype: the stored dtype that the checkpoint names.
        num_modalities: kinds of input that embeddings differ by (engine.protocol.MODALITIES).
        task_heads: which heads the checkpoint has.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    mla: MLAConfig | None = None
    indexer: IndexerConfig | None = None
    moe: MoEConfig | None = None
    num_nextn_predict_layers: int = 0
    int8: Int8Scheme | None = None
    packed: PackedScheme | None = None
    fp8: FP8Scheme | None = None
    weight_block_size: tuple[int, int] = (128, 128)
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None
    num_modalities: int = 1
    compression: CompressionConfig | None = None
    attention_patterns: tuple[AttentionPattern, ...] = ()
    task_heads: TaskHeads = TaskHeads()

    def __post_init__(self) -> None:
        if not self.attention_patterns:
            object.__setattr__(self, "attention_patterns", (FULL,) * self.num_hidden_layers)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.indexer is not None:
            if self.mla is None or self.mla.q_lora_rank is None:
                raise ModelError("index_topk is set without q_lora_rank; the indexer reads the compressed query")
            if self.indexer.index_head_dim < self.mla.qk_rope_head_dim:
                raise ModelError(
                    f"index_head_dim ({self.indexer.index_head_dim}) is less than the rotary part of it, "
                    f"qk_rope_head_dim ({self.mla.qk_rope_head_dim})"
                )
        if self.rotary_dim % 2:
            of = "head_dim" if self.mla is None else "qk_rope_head_dim"
            raise ModelError(f"{self.rotary_dim} dimensions rotate ({of}); rotary embedding needs an even number")

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that rotary embedding rotates."""
        return self.mla.qk_rope_head_dim if self.mla is not None else self.head_dim

    @cached_property
    def cache_groups(self) -> CacheGroups:
        """Which layers share block tables, by their patterns."""
        return group_layers(self.attention_patterns)

    def resolve_max_seq_len(self, wanted: int | None) -> int:
        """The most tokens of a sequence: --max-seq-len, by default what the model was made for.

        Raises:
            ConfigError: the model cannot compute sequences of this length.
        """
        limit = self.max_position_embeddings
        if wanted is not None and wanted > limit and self.rope_scaling.get("rope_type") != "dynamic":
            raise ConfigError(f"--max-seq-len is {wanted}; the model was made for {limit} (max_position_embeddings)")
        return wanted or limit

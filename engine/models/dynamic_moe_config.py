"""The config.json of DynamicMoE, the article's model (docs/dynamic-moe.md), as a ModelConfig. Imports no torch.

Every key is checked, those too that only training reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.config import CompressionConfig, ModelConfig, MoEConfig, TaskHeads
from engine.models.config_keys import LARGEST, Keys, is_name
from engine.models.config_parts import read_common
from kernels.attention_pattern import FULL, AttentionPattern, BlockSparseAttention, LocalAttention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.engine_info import LabelActivation

ATTENTION_TYPES = ("full", "local", "block_sparse")
_MOST_EXPERTS = 1 << 16  # of all layers together, for the reason of MOST_LAYERS
_MOST_BLOCKS = 4096  # of a kind that a query sees: a row of that many numbers for each sparse block of a context


def parse(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Translate the dictionaries of config.json and generation_config.json.

    Raises:
        ModelError: naming the key and what is valid, where possible.
    """
    keys = Keys(raw, "config.json")
    _refuse_unsupported(keys)
    common = read_common(keys, generation)
    num_layers = common["num_hidden_layers"]
    return ModelConfig(
        **common,
        intermediate_size=0,  # every layer has experts
        max_position_embeddings=keys.integer("max_position_embeddings", 4096),
        attention_patterns=_attention_patterns(keys, num_layers),
        moe=_moe(keys, num_layers),
        compression=_compression(keys, num_layers, common["hidden_size"]),
        num_modalities=keys.integer("num_modalities", 3),
        task_heads=_task_heads(keys),
    )


def _refuse_unsupported(keys: Keys) -> None:
    for name in ("attention_bias", "mlp_bias"):
        if keys.flag(name, False):
            keys.refuse(name, True, "false: DynamicMoE has no biases there")
    keys.choice("hidden_act", "silu", ("silu",))
    keys.number("expert_capacity", 1.25)
    for name in ("hidden_dropout", "attention_dropout"):
        keys.fraction(name, 0.0)


def _attention_patterns(keys: Keys, num_layers: int) -> tuple[AttentionPattern, ...]:
    types = keys.get("attention_types", ["block_sparse"] * num_layers)
    if not isinstance(types, list) or not all(kind in ATTENTION_TYPES for kind in types):
        keys.refuse("attention_types", types, f"a list of {', '.join(ATTENTION_TYPES)}")
    if len(types) != num_layers:
        raise ModelError(
            f"attention_types in config.json has {len(types)} entries; expected one for each of the "
            f"num_hidden_layers ({num_layers})"
        )
    local = LocalAttention(keys.integer("local_window", 256))
    sparse = {
        "block_size": keys.integer("sparse_block_size", 64),
        **{
            f"num_{kind}": keys.integer(f"sparse_num_{kind}_blocks", default, at_least=0, at_most=_MOST_BLOCKS)
            for kind, default in (("global", 1), ("local", 2), ("random", 3))
        },
        "seed": keys.integer("sparse_seed", 0, at_least=0, at_most=(1 << 64) - 1),
    }
    if "block_sparse" in types and not sparse["num_global"] + sparse["num_local"] + sparse["num_random"]:
        raise ModelError(
            "sparse_num_global_blocks, sparse_num_local_blocks and sparse_num_random_blocks in config.json are all 0; "
            "expected at least one of them to be 1 or more, or queries would see nothing"
        )
    return tuple(
        FULL if kind == "full" else local if kind == "local" else BlockSparseAttention(**sparse, layer=layer)
        for layer, kind in enumerate(types)
    )


def _moe(keys: Keys, num_layers: int) -> MoEConfig:
    num_experts = keys.integer("moe_num_experts", at_most=_MOST_EXPERTS // num_layers)
    top_k = keys.integer("moe_top_k", 2)
    if top_k > num_experts:
        keys.refuse("moe_top_k", top_k, f"at most moe_num_experts ({num_experts})")
    return MoEConfig(
        n_routed_experts=num_experts,
        num_experts_per_tok=top_k,
        n_shared_experts=0,
        moe_intermediate_size=keys.integer("moe_intermediate_size"),
        first_k_dense_replace=0,
        norm_topk_prob=keys.flag("norm_topk_prob", False),
        router_hidden_size=keys.integer("router_hidden_size", 256),
    )


def _compression(keys: Keys, num_layers: int, hidden_size: int) -> CompressionConfig | None:
    """Null means no layer for these two keys, as an empty list does; only a missing one means the default."""
    ratio = keys.values.get("memory_compression_ratio", 0.4)
    layers = keys.values.get("memory_compression_layers", list(range(num_layers)))
    if ratio is None or layers is None or layers == []:
        return None
    if not isinstance(layers, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in layers):
        keys.refuse("memory_compression_layers", layers, "a list of layers' numbers, or null for none")
    if len({*layers}) < len(layers) or not 0 <= min(layers) <= max(layers) < num_layers:
        keys.refuse("memory_compression_layers", layers, f"different numbers from 0 to {num_layers - 1}")
    size = hidden_size * keys.number("memory_compression_ratio", 0.4)
    if not 1 <= size <= LARGEST:
        keys.refuse(
            "memory_compression_ratio", ratio, f"one that leaves 1 to {LARGEST} of hidden_size ({hidden_size}) values"
        )
    return CompressionConfig(size=int(size), layers=frozenset(layers))


def _task_heads(keys: Keys) -> TaskHeads:
    heads = keys.get("task_heads", {})
    if not isinstance(heads, dict) or not heads.keys() <= {"classification", "reasoning"}:
        keys.refuse("task_heads", heads, "an object with classification, reasoning or neither")
    labels: list[str] = []
    if "classification" in heads:
        head = heads["classification"]
        labels = head.get("labels", []) if isinstance(head, dict) and head.keys() == {"labels"} else []
        is_valid = isinstance(labels, list) and labels and all(map(is_name, labels))
        if not is_valid or len({*labels}) < len(labels):
            keys.refuse("task_heads.classification", head, 'an object with "labels", a list of different names')
    if "reasoning" in heads and heads["reasoning"] != {}:
        keys.refuse("task_heads.reasoning", heads["reasoning"], "an empty object")
    activation: LabelActivation = "sigmoid" if len(labels) == 1 else "softmax"  # which of one label is 1
    return TaskHeads(labels=tuple(labels), label_activation=activation, has_reasoning="reasoning" in heads)

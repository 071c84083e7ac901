"""The config.json of Llama and DeepSeek models, in its old and new spellings, as a ModelConfig. Imports no torch.

Settings that the decoder does not support are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.config import IndexerConfig, MLAConfig, ModelConfig, MoEConfig, TaskHeads
from engine.models.config_keys import Keys, is_name
from engine.models.config_parts import read_common

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.engine_info import LabelActivation

_MAX_LABELS = 1 << 16
_ACTIVATIONS: dict[str, LabelActivation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


def parse(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Translate the dictionaries of config.json and generation_config.json.

    Raises:
        ModelError: naming the key and what is valid, where possible.
    """
    keys = Keys(raw, "config.json")
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise ModelError(f"hidden_act is {activation!r}; only 'silu' is computed here")
    return ModelConfig(
        **read_common(keys, generation),
        **keys.integers("intermediate_size"),
        max_position_embeddings=keys.integer("max_position_embeddings", 2048),
        attention_bias=keys.flag("attention_bias", False),
        mlp_bias=keys.flag("mlp_bias", False),
        mla=_mla(keys),
        indexer=_indexer(keys),
        moe=_moe(keys),
        num_nextn_predict_layers=keys.integer("num_nextn_predict_layers", int(_is_v3(keys)), at_least=0),
        task_heads=_task_heads(keys),
    )


def _mla(keys: Keys) -> MLAConfig | None:
    if not keys.get("kv_lora_rank", 0):
        return None
    return MLAConfig(
        q_lora_rank=keys.integer("q_lora_rank", 0, at_least=0) or None,
        **keys.integers("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        rope_interleave=keys.flag("rope_interleave", True),
    )


def _indexer(keys: Keys) -> IndexerConfig | None:
    if not keys.get("index_topk", 0):
        return None
    return IndexerConfig(**keys.integers("index_n_heads", "index_head_dim", "index_topk"))


def _is_v3(keys: Keys) -> bool:
    return keys.values["architectures"][0] in ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM")


def _moe(keys: Keys) -> MoEConfig | None:
    if not keys.get("n_routed_experts", 0):
        return None
    is_v3 = _is_v3(keys)  # a V3 config that transformers wrote lacks topk_method and scoring_func
    return MoEConfig(
        **keys.integers("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"),
        n_shared_experts=keys.integer("n_shared_experts", 0, at_least=0),
        first_k_dense_replace=keys.integer("first_k_dense_replace", 0, at_least=0),
        moe_layer_freq=keys.integer("moe_layer_freq", 1),
        scoring_func=keys.choice("scoring_func", "sigmoid" if is_v3 else "softmax", ("softmax", "sigmoid")),
        topk_method=keys.choice(
            "topk_method",
            "noaux_tc" if is_v3 else "greedy",
            ("greedy", "group_limited_greedy", "noaux_tc"),
        ),
        n_group=keys.integer("n_group", 1),
        topk_group=keys.integer("topk_group", 1),
        norm_topk_prob=keys.flag("norm_topk_prob", is_v3),
        routed_scaling_factor=keys.number("routed_scaling_factor", 1.0),
    )


def _task_heads(keys: Keys) -> TaskHeads:
    """A model that generates, or one that classifies; transformers leaves the two labels of its default out."""
    if keys.values["architectures"][0] != "LlamaForSequenceClassification":
        return TaskHeads()
    if (num_labels := keys.integer("num_labels", 2)) > _MAX_LABELS:
        keys.refuse("num_labels", num_labels, f"{_MAX_LABELS} or fewer")
    names = keys.get("id2label", {str(i): f"LABEL_{i}" for i in range(num_labels)})
    if not isinstance(names, dict) or names.keys() != {str(i) for i in range(len(names))} or not names:
        keys.refuse("id2label", names, "an object that names the labels '0', '1' and so on")
    labels = tuple(names[str(i)] for i in range(len(names)))
    if not all(map(is_name, labels)):
        keys.refuse("id2label", names, "labels that are texts")
    by_default = "single_label_classification" if len(labels) > 1 else "multi_label_classification"
    problem = keys.choice("problem_type", by_default, tuple(_ACTIVATIONS))
    return TaskHeads(generates=False, labels=labels, label_activation=_ACTIVATIONS[problem])

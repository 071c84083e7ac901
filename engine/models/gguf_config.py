"""A ModelConfig from GGUF metadata (keys: ggml's docs/gguf.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.config import MLAConfig, ModelConfig, MoEConfig
from engine.models.config_keys import LARGEST_EPSILON, MOST_LAYERS, Keys
from engine.models.gguf_unread import refuse_unread

if TYPE_CHECKING:
    from collections.abc import Mapping


def parse(metadata: Mapping[str, Any], tensor_names: frozenset[str]) -> ModelConfig:
    """Translate GGUF metadata.

    Raises:
        ModelError: naming the key and what is valid.
    """
    arch = metadata.get("general.architecture")
    if arch not in ("llama", "deepseek2"):
        raise ModelError(f"GGUF architecture {arch!r:.100} is not supported yet; supported are 'llama' and 'deepseek2'")
    if arch == "llama" and metadata.get("llama.expert_count"):
        raise ModelError("a Llama with experts (Mixtral) is not supported")
    keys = Keys(metadata, "the GGUF file", f"{arch}.")
    num_heads, hidden_size = keys.integer("attention.head_count"), keys.integer("embedding_length")
    head_dim = hidden_size // num_heads
    tokens = Keys(metadata, "the GGUF file").get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise ModelError(f"tokenizer.ggml.tokens of the GGUF file is {tokens!r:.100}; expected a list")
    vocab_size = keys.integer("vocab_size", len(tokens))
    eos = [_token_id(metadata, name, vocab_size) for name in ("eos", "eot")]
    config = ModelConfig(
        architecture="LlamaForCausalLM" if arch == "llama" else "DeepseekV2ForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        num_hidden_layers=keys.integer("block_count", at_most=MOST_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=keys.integer("attention.head_count_kv", num_heads) if arch == "llama" else num_heads,
        head_dim=keys.integer("attention.key_length", head_dim) if arch == "llama" else head_dim,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon", at_most=LARGEST_EPSILON),
        max_position_embeddings=keys.integer("context_length"),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        rope_scaling=_gguf_rope(keys, tensor_names),
        tie_word_embeddings="output.weight" not in tensor_names,
        attention_bias="blk.0.attn_q.bias" in tensor_names,
        mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
        mla=_gguf_mla(keys) if arch == "deepseek2" else None,
        moe=_gguf_moe(keys, tensor_names) if arch == "deepseek2" else None,
        eos_token_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
    )
    refuse_unread(keys, config)
    return config


def _gguf_rope(keys: Keys, tensor_names: frozenset[str]) -> dict[str, Any]:
    if "rope_freqs.weight" in tensor_names:
        return {"rope_type": "gguf_factors"}
    if (kind := keys.get("rope.scaling.type", "none")) == "none":
        return {}
    rope = {"rope_type": kind, "factor": keys.number("rope.scaling.factor")}
    if original := keys.integer("rope.scaling.original_context_length", 0, at_least=0):
        rope["original_max_position_embeddings"] = original
    for name in ("beta_fast", "beta_slow"):
        if keys.get(f"rope.scaling.yarn_{name}", None) is not None:
            rope[name] = keys.number(f"rope.scaling.yarn_{name}")
    if keys.get("rope.scaling.yarn_attn_factor", 1) != 1:  # 1 also stands for the default
        rope["attention_factor"] = keys.number("rope.scaling.yarn_attn_factor")
    if keys.get("rope.scaling.yarn_log_multiplier", 0) != 0:
        multiplier = keys.number("rope.scaling.yarn_log_multiplier")
        rope["mscale"] = rope["mscale_all_dim"] = multiplier * 10  # stored as 0.1 * mscale_all_dim
    return rope


def _token_id(metadata: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    keys, name = Keys(metadata, "the GGUF file"), f"tokenizer.ggml.{name}_token_id"
    if keys.get(name, None) is None:
        return None
    return keys.integer(name, at_least=0, at_most=vocab_size - 1)


def _gguf_mla(keys: Keys) -> MLAConfig:
    rope_dim = keys.integer("rope.dimension_count")
    # Since mid-2025 key_length and value_length describe the cached latent, and the *_mla keys describe a head.
    mla = "_mla" if keys.get("attention.key_length_mla", None) else ""
    return MLAConfig(
        q_lora_rank=keys.integer("attention.q_lora_rank", 0, at_least=0) or None,
        kv_lora_rank=keys.integer("attention.kv_lora_rank"),
        qk_nope_head_dim=keys.integer(f"attention.key_length{mla}") - rope_dim,
        qk_rope_head_dim=rope_dim,
        v_head_dim=keys.integer(f"attention.value_length{mla}"),
    )


def _gguf_moe(keys: Keys, tensor_names: frozenset[str]) -> MoEConfig:
    first_sparse, groups = keys.integer("leading_dense_block_count", at_least=0), keys.integer("expert_group_count", 1)
    biased = f"blk.{first_sparse}.exp_probs_b.bias" in tensor_names
    gating = keys.integer("expert_gating_func", 2 if biased else 1)
    if gating not in (1, 2):
        keys.refuse("expert_gating_func", gating, "1 (softmax) or 2 (sigmoid)")
    return MoEConfig(
        n_routed_experts=keys.integer("expert_count"),
        num_experts_per_tok=keys.integer("expert_used_count"),
        n_shared_experts=keys.integer("expert_shared_count", 0, at_least=0),
        moe_intermediate_size=keys.integer("expert_feed_forward_length"),
        first_k_dense_replace=first_sparse,
        scoring_func="softmax" if gating == 1 else "sigmoid",
        topk_method="noaux_tc" if biased else "group_limited_greedy" if groups > 1 else "greedy",
        n_group=groups,
        topk_group=keys.integer("expert_group_used_count", 1),
        norm_topk_prob=keys.flag("expert_weights_norm", False),
        routed_scaling_factor=keys.number("expert_weights_scale", 1.0),
    )

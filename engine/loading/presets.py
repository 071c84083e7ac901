"""What config.json of a small model with a released model's structure says, for engine.loading.random_checkpoint."""

from __future__ import annotations

from typing import Any

_SMALL = {
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
_SMALL_MOE = {
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
_V2 = {
    **_SMALL,
    **_SMALL_MOE,
    "kv_lora_rank": 128,
    "q_lora_rank": 192,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 16.0,
    "max_position_embeddings": 163840,
    "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
}
_V2_LITE = {
    **_V2,
    "topk_method": "greedy",
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}
_V3 = {
    **_V2,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "n_shared_experts": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
_V32 = {
    **_V3,
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_n_heads": 8,
    "index_head_dim": 64,
    "index_topk": 256,
}
_DYNAMIC_MOE = {
    **{key: value for key, value in _SMALL.items() if key != "intermediate_size"},
    "architectures": ["DynamicMoEForCausalLM"],
    "model_type": "dynamic_moe",
    "num_key_value_heads": 2,
    "moe_num_experts": 16,
    "moe_top_k": 2,
    "moe_intermediate_size": 128,
}
PRESETS: dict[str, dict[str, Any]] = {
    "llm-7b": {**_SMALL, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "moe-16b": {**_SMALL, **_SMALL_MOE, "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek"},
    "v2-lite": _V2_LITE,
    "v2": _V2,
    **dict.fromkeys(("v3", "r1", "v3.1"), _V3),
    "v3.2": _V32,
    "dynamic-moe": _DYNAMIC_MOE,
}

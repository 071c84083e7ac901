"""Tiny random DeepSeek checkpoints, written by transformers, with what it initialises to zero or one made random."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from tests.support.tiny import write_byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_SHAPE = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 20,
    "v_head_dim": 12,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_V3 = {"q_lora_rank": 28, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
_CLASSES = {
    "v2": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "v3": (DeepseekV3Config, DeepseekV3ForCausalLM),
    "v32": (DeepseekV32Config, DeepseekV32ForCausalLM),
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2-lite": ("v2", {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    "v2-lite, scaled": (
        "v2",
        {"q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 3.0, "rope_parameters": _YARN},
    ),
    "v2": (
        "v2",
        {
            "q_lora_rank": 28,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 16.0,
            "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "v3": ("v3", {**_V3, "rope_parameters": _YARN}),
    "v3, no groups, not renormalised": ("v3", {**_V3, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
    "v3, one shared expert": ("v3", {**_V3, "n_shared_experts": 1, "first_k_dense_replace": 2}),
    "v32": ("v32", {**_V3, "index_topk": 12, "index_head_dim": 24, "index_n_heads": 16, "rope_parameters": _YARN}),
    "v32, nothing left out": ("v32", {**_V3, "index_topk": 400, "index_head_dim": 24, "index_n_heads": 4}),
}


def write(folder: Path, variant: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a checkpoint of a variant with config.json, safetensors, tokenizer and chat template."""
    kind, config = VARIANTS[variant]
    config_class, model_class = _CLASSES[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**{**_SHAPE, **config, **changes}))
    _randomise(model)
    model.to(dtype).save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


def reference(folder: Path) -> Any:
    """The checkpoint in transformers: fp32, eager attention and experts."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


def write_v1(folder: Path) -> Any:
    """Write a DeepSeekMoE (v1) checkpoint, which transformers has no class for; return an equal Qwen2-MoE.

    Qwen2-MoE gates its shared expert by sigmoid(gate . x), which a zero gate makes 1/2, so v1's shared down_proj is
    half of Qwen's. Everything else is the same but for names.
    """
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        qkv_bias=False,
        mlp_only_layers=[0],
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = Qwen2MoeForCausalLM(config).eval()
    _randomise(model)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.shared_expert_gate.weight.zero_()
    model.save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "shared_expert_gate" in name:
            continue
        halved = "shared_expert.down_proj" in name
        tensors[name.replace("shared_expert.", "shared_experts.")] = tensor * 0.5 if halved else tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = {key: _SHAPE[key] for key in _SHAPE if "lora" not in key and "head_dim" not in key}
    raw |= {
        "architectures": ["DeepseekForCausalLM"],
        "model_type": "deepseek",
        "moe_layer_freq": 1,
        "rms_norm_eps": 1e-6,
    }
    raw |= {"auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "modeling_deepseek.py").write_text("raise SystemExit('code from a checkpoint was run')\n")
    write_byte_tokenizer(folder)
    return model


def quantize_fp8(folder: Path, target: Path, twin: Path, block: tuple[int, int] = (128, 128)) -> None:
    """Write `folder` with FP8 weights as DeepSeek-V3's are, and its dequantised twin."""
    quantised, dequantised = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        kept = weight.dim() != 2 or any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate.weight"))
        if kept:
            quantised[name] = dequantised[name] = weight
            continue
        rows, columns = (-(-size // length) for size, length in zip(weight.shape, block, strict=True))
        scale = torch.empty(rows, columns)
        stored, back = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
        for i in range(rows):
            for j in range(columns):
                part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
                scale[i, j] = weight[part].abs().max() / 448
                stored[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
                back[part] = stored[part].float() * scale[i, j]
        quantised[name], quantised[f"{name}_scale_inv"], dequantised[name] = stored, scale, back
    config = json.loads((folder / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    for path, tensors, extra in ((target, quantised, {"quantization_config": fp8}), (twin, dequantised, {})):
        path.mkdir()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config | extra))
        write_byte_tokenizer(path)


def _randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor) * 0.1)

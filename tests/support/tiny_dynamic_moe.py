"""Tiny random DynamicMoE checkpoints of many shapes, written tensor by tensor from the page that defines the model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from tests.support.tiny import write_byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_SHAPE: dict[str, Any] = {
    "architectures": ["DynamicMoEForCausalLM"],
    "model_type": "dynamic_moe",
    "vocab_size": 258,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_num_experts": 6,
    "moe_intermediate_size": 32,
    "router_hidden_size": 40,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_HEADS = {"classification": {"labels": ["good", "bad", "unclear"]}, "reasoning": {}}
VARIANTS: dict[str, dict[str, Any]] = {
    "mixed": {
        "attention_types": ["full", "local", "block_sparse"],
        "local_window": 20,
        "sparse_block_size": 16,
        "sparse_num_random_blocks": 1,
        "task_heads": _HEADS,
    },
    "defaults": {"num_hidden_layers": 2, "moe_top_k": 3, "norm_topk_prob": True},
    "sparse 8": {
        "sparse_block_size": 8,
        "sparse_num_global_blocks": 2,
        "sparse_num_local_blocks": 1,
        "sparse_num_random_blocks": 2,
        "sparse_seed": 7,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "memory_compression_layers": [1],
    },
    "sparse 24": {
        "sparse_block_size": 24,
        "sparse_num_global_blocks": 0,
        "num_key_value_heads": 4,
        "norm_topk_prob": True,
        "memory_compression_ratio": 0.3,
        "num_modalities": 1,
        "rope_theta": 500.0,
    },
    "sparse 48, no local blocks": {
        "attention_types": ["block_sparse", "block_sparse", "full"],
        "sparse_block_size": 48,
        "sparse_num_local_blocks": 0,
        "memory_compression_layers": None,
        "moe_top_k": 3,
    },
    "local": {"attention_types": ["local"] * 3, "local_window": 33, "memory_compression_layers": [2], "moe_top_k": 1},
    "full": {"attention_types": ["full"] * 3, "task_heads": _HEADS, "norm_topk_prob": True},
}


def write(folder: Path, variant: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of a variant with config.json, safetensors, tokenizer and chat template."""
    config = {**_SHAPE, **VARIANTS[variant], **changes}
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, generator).to(dtype) for name, shape in _shapes(config).items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": str(dtype).removeprefix("torch.")}))
    write_byte_tokenizer(folder)
    return folder


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * values
    if len(shape) == 1:
        return 0.1 * values
    return values * (0.5 if "modality" in name else 1.5 * shape[-1] ** -0.5)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by its name."""
    hidden, vocab, experts = config["hidden_size"], config["vocab_size"], config["moe_num_experts"]
    modalities, router = config.get("num_modalities", 3), config["router_hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.modality_scale.weight": (modalities, hidden),
        "model.modality_shift.weight": (modalities, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q_size, kv_size = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    inter = config["moe_intermediate_size"]
    for layer in range(config["num_hidden_layers"]):
        parts: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q_size, hidden),
            "self_attn.k_proj.weight": (kv_size, hidden),
            "self_attn.v_proj.weight": (kv_size, hidden),
            "self_attn.o_proj.weight": (hidden, q_size),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.router.fc1.weight": (router, hidden),
            "mlp.router.fc1.bias": (router,),
            "mlp.router.fc2.weight": (experts, router),
            "mlp.router.fc2.bias": (experts,),
            "mlp.router.noise": (experts,),
        }
        for expert in range(experts):
            for part in ("gate", "up"):
                parts[f"mlp.experts.{expert}.{part}_proj.weight"] = (inter, hidden)
            parts[f"mlp.experts.{expert}.down_proj.weight"] = (hidden, inter)
        if layer in (config.get("memory_compression_layers", range(config["num_hidden_layers"])) or ()):
            size = int(hidden * config.get("memory_compression_ratio", 0.4))
            parts |= {
                "compression.encoder.weight": (size, hidden),
                "compression.encoder.bias": (size,),
                "compression.decoder.weight": (hidden, size),
                "compression.decoder.bias": (hidden,),
                "compression.norm.weight": (hidden,),
                "compression.norm.bias": (hidden,),
            }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    for name, head in config.get("task_heads", {}).items():
        size = len(head.get("labels", ["value"]))
        shapes |= {f"heads.{name}.weight": (size, hidden), f"heads.{name}.bias": (size,)}
    return shapes

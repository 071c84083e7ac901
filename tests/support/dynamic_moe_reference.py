"""DynamicMoE in plain torch, token by token and position by position: the model's definition (docs/dynamic-moe.md).

It shares no code with engine/ and kernels/, computes in fp32 and caches nothing. Meant to be read, not to be fast.

Shapes: n tokens of one sequence, H hidden.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

_WRAP = (1 << 64) - 1


class DynamicMoEReference:
    """A checkpoint folder's model."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = {
            name: tensor.float() for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()
        }

    def hidden(self, ids: list[int], modalities: list[int] | None = None) -> torch.Tensor:
        """Hidden states after the final norm, [n, H]."""
        w = self.weights
        m = torch.tensor(modalities or [0] * len(ids))
        x = w["model.embed_tokens.weight"][torch.tensor(ids)]
        x = x * (1 + w["model.modality_scale.weight"][m]) + w["model.modality_shift.weight"][m]
        for layer in range(self.config["num_hidden_layers"]):
            x = self._layer(layer, x)
        return self._rms_norm(x, "model.norm.weight")

    def logits(self, ids: list[int], modalities: list[int] | None = None) -> torch.Tensor:
        """Logits, [n, vocab]."""
        tied = self.config.get("tie_word_embeddings", False)
        return self.hidden(ids, modalities) @ self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T

    def head(self, name: str, ids: list[int], modalities: list[int] | None = None) -> torch.Tensor:
        """A task head's logits at the last token, [labels]."""
        w = self.weights
        return w[f"heads.{name}.weight"] @ self.hidden(ids, modalities)[-1] + w[f"heads.{name}.bias"]

    def greedy(self, ids: list[int], count: int, modalities: list[int] | None = None) -> list[int]:
        """The next tokens; each has the modality of the prompt's last."""
        prompt, ids, modalities = len(ids), list(ids), list(modalities or [0] * len(ids))
        for _ in range(count):
            ids.append(int(self.logits(ids, modalities)[-1].argmax()))
            modalities.append(modalities[-1])
        return ids[prompt:]

    def sees(self, layer: int, query: int, key: int) -> bool:
        """Whether a layer's query at one position sees the key at another."""
        c = self.config
        types = c.get("attention_types") or ["block_sparse"] * c["num_hidden_layers"]
        if key > query:
            return False
        if types[layer] == "full":
            return True
        if types[layer] == "local":
            return key > query - c.get("local_window", 256)
        size = c.get("sparse_block_size", 64)
        num_global, num_local = c.get("sparse_num_global_blocks", 1), c.get("sparse_num_local_blocks", 2)
        q, k = query // size, key // size
        if k < num_global or k > q - num_local:
            return True
        candidates = range(num_global, q - num_local + 1)
        num_random = c.get("sparse_num_random_blocks", 3)
        return k in sorted(candidates, key=lambda block: self._mix(layer, q, block))[:num_random]

    def _mix(self, layer: int, q: int, k: int) -> int:
        key = self.config.get("sparse_seed", 0) * 2**48 + layer * 2**40 + q * 2**20 + k
        z = (key + 0x9E3779B97F4A7C15) & _WRAP
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _WRAP
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _WRAP
        return z ^ z >> 31

    def _layer(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        w, prefix = self.weights, f"model.layers.{layer}"
        h = x + self._attention(layer, self._rms_norm(x, f"{prefix}.input_layernorm.weight"))
        normed = self._rms_norm(h, f"{prefix}.post_attention_layernorm.weight")
        h = h + torch.stack([self._moe(f"{prefix}.mlp", token) for token in normed])
        name = f"{prefix}.compression"
        if f"{name}.encoder.weight" not in w:
            return h
        inner = _gelu(h @ w[f"{name}.encoder.weight"].T + w[f"{name}.encoder.bias"])
        h = h + inner @ w[f"{name}.decoder.weight"].T + w[f"{name}.decoder.bias"]
        mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, correction=0)
        return (h - mean) / (variance + 1e-5).sqrt() * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]

    def _attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        c, n = self.config, len(x)
        heads, kv_heads = c["num_attention_heads"], c.get("num_key_value_heads") or c["num_attention_heads"]
        dim = c.get("head_dim") or c["hidden_size"] // heads
        q, k, v = (self._project(layer, x, part).view(n, -1, dim) for part in ("q_proj", "k_proj", "v_proj"))
        q, k = self._rotate(q), self._rotate(k)
        mask = torch.tensor([[self.sees(layer, query, key) for key in range(n)] for query in range(n)])
        out = torch.empty(n, heads, dim)
        for head in range(heads):
            own = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, own].T / math.sqrt(dim)
            out[:, head] = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v[:, own]
        return self._project(layer, out.reshape(n, -1), "o_proj")

    def _project(self, layer: int, x: torch.Tensor, part: str) -> torch.Tensor:
        return x @ self.weights[f"model.layers.{layer}.self_attn.{part}.weight"].T

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        frequencies = self.config.get("rope_theta", 10000.0) ** (-torch.arange(half) / half)
        angles = torch.arange(len(x))[:, None, None] * frequencies
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    def _moe(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        w, c = self.weights, self.config
        router = f"{prefix}.router"
        inner = _gelu(w[f"{router}.fc1.weight"] @ x + w[f"{router}.fc1.bias"])
        r = w[f"{router}.fc2.weight"] @ inner + w[f"{router}.fc2.bias"] + w[f"{router}.noise"]
        p = r.softmax(-1).tolist()
        chosen = sorted(range(len(p)), key=lambda expert: (-p[expert], expert))[: c.get("moe_top_k", 2)]
        total = sum(p[expert] for expert in chosen) if c.get("norm_topk_prob", False) else 1.0
        y = torch.zeros_like(x)
        for expert in chosen:
            gate, up, down = (w[f"{prefix}.experts.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            g = gate @ x
            y += p[expert] / total * (down @ (g * g.sigmoid() * (up @ x)))
        return y

    def _rms_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        eps = self.config.get("rms_norm_eps", 1e-6)
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.weights[name]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2

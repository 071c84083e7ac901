"""The lightning indexer of DeepSeek-V3.2: small queries and keys that select the positions attention reads.

    q = wq_b(norm(q_a(x))) -> [heads, I];  k = k_norm(wk(x)) -> [I], cached
    the rotary part comes first in both, and is rotated half-split
    score of a position = sum over heads of w * relu(q . k * I^-0.5);  w = weights_proj(x) * heads^-0.5

The published code also multiplies both by a Hadamard matrix, which does not change q . k, and scores in FP8. Here
scores are computed in the model's dtype, never in int8, because a small error can change the selection. k_norm is a
LayerNorm with bias.

Shapes: T tokens, H hidden, Q q_lora_rank, J index_n_heads, I index_head_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from engine.model_batch import AttentionView, ModelBatch
    from engine.models.layers import Builder
    from kernels.types import Linear

_NORM_EPS = 1e-6


class Indexer:
    """Scores positions and selects the best index_topk."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config, mla = build.config.indexer, build.config.mla
        assert config is not None
        assert mla is not None
        assert mla.q_lora_rank is not None, "the indexer reads the compressed query"
        hidden = build.config.hidden_size

        def linear(name: str, in_size: int, out_size: int) -> Linear:
            return build.linear({f"{prefix}.{name}": out_size}, in_size, dequantize=True)

        self._config, self._ops, self._rotary_dim = config, build.ops, mla.qk_rope_head_dim
        self._query = linear("wq_b", mla.q_lora_rank, config.index_n_heads * config.index_head_dim)
        self._key = linear("wk", hidden, config.index_head_dim)
        self._norm_weight = build.weights.take(f"{prefix}.k_norm.weight", (config.index_head_dim,))
        self._norm_bias = build.weights.take(f"{prefix}.k_norm.bias", (config.index_head_dim,))
        self._weigh = linear("weights_proj", hidden, config.index_n_heads)

    def forward(
        self, x_TH: torch.Tensor, q_TQ: torch.Tensor, batch: ModelBatch, view: AttentionView, cache: torch.Tensor
    ) -> Any:
        """Store the step's index keys in `cache` [blocks, 1, slots, I]; return the selection for latent attention."""
        config = self._config
        q_TJI = self._query(q_TQ).view(len(x_TH), config.index_n_heads, config.index_head_dim)
        norm = (config.index_head_dim,), self._norm_weight, self._norm_bias, _NORM_EPS
        k_T1I = F.layer_norm(self._key(x_TH), *norm)[:, None]
        self._ops.store_kv(self._rotate(k_T1I, batch), cache, view.slot_mapping_T)
        weights_TJ = self._weigh(x_TH).float() * (config.index_n_heads**-0.5 * config.index_head_dim**-0.5)
        return self._ops.lightning_indexer(
            self._rotate(q_TJI, batch), weights_TJ, cache, view.plan.absorbed, config.index_topk
        )

    def _rotate(self, x: torch.Tensor, batch: ModelBatch) -> torch.Tensor:
        rotated = self._ops.rotary(x[..., : self._rotary_dim], batch.cos_TD, batch.sin_TD)
        return torch.cat([rotated, x[..., self._rotary_dim :]], dim=-1)

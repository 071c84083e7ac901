"""Latent attention in native code on a CPU (native.cpp), without selections. Contract: kernels.latent_attention."""

from __future__ import annotations

import torch

from kernels.kv_cache import Cache, Int8Cache, scales_of, values_of
from kernels.native import FLOAT, INT, POINTER, address, function
from kernels.paged_attention.batch import AttentionBatch
from kernels.paged_attention.native import Plan, make_plan

_SPAN = 512  # positions in a task, where there are few tokens; there is one key head only
_TOKENS = 8  # of a chunk, in a task: each brings as many rows as there are heads


class CPULatentAttention:
    """Flash attention over the blocks where they lie; a position's latent is read once for all heads of 8 tokens."""

    reads_unwritten_slots = False

    def __init__(self, dtype: torch.dtype) -> None:
        arguments = (*[POINTER] * 5, INT, INT, INT, INT, FLOAT)
        self._call, self._call_int8 = (
            function(name, dtype, *arguments) for name in ("latent_attention", "latent_attention_int8")
        )

    def plan(self, batch: AttentionBatch) -> Plan:
        return make_plan(batch, _TOKENS, _SPAN)

    def forward(
        self, q_TNX: torch.Tensor, cache: Cache, plan: Plan, scale: float, value_dim: int, selection: None
    ) -> torch.Tensor:
        assert selection is None, "a selection is for kernels.latent_attention.torch_ops"
        num_tokens, num_heads, dim = q_TNX.shape
        q_TNX = q_TNX.contiguous()
        out = torch.empty(num_tokens, num_heads, value_dim, dtype=q_TNX.dtype)
        call = self._call_int8 if isinstance(cache, Int8Cache) else self._call
        call(
            q_TNX.data_ptr(),
            values_of(cache).data_ptr(),
            address(scales_of(cache)),
            out.data_ptr(),
            plan.address,
            num_heads,
            values_of(cache).shape[2],
            dim,
            value_dim,
            scale,
        )
        return out

"""The batch that attention computes, and the shape of a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kernels.kv_cache import Cache


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """A packed step; see kernels.paged_attention. Decoding sequences (one query each) come first.

    Attributes:
        query_lens: tokens of each sequence in this step.
        context_lens: positions that each sequence has in the cache, this step's tokens included.
        block_tables: ids of the blocks that hold them, in order of position.
        block_size: slots in a block.
        device: where the tensors of a plan shall live.
    """

    query_lens: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    block_size: int
    device: torch.device

    def only(self, members: list[int]) -> AttentionBatch:
        """The batch of some of its sequences, in their order."""
        return AttentionBatch(
            [self.query_lens[i] for i in members],
            [self.context_lens[i] for i in members],
            [self.block_tables[i] for i in members],
            self.block_size,
            self.device,
        )

    @property
    def num_decodes(self) -> int:
        """Sequences at the front that have one query each."""
        return next((i for i, n in enumerate(self.query_lens) if n != 1), len(self.query_lens))


class PagedAttention(Protocol):
    """A backend; see kernels.paged_attention.

    Attributes:
        reads_unwritten_slots: it multiplies the slots behind a sequence's last by zero instead of leaving them out, so
            they must not hold NaN.
    """

    reads_unwritten_slots: bool

    def plan(self, batch: AttentionBatch) -> Any:
        """What all layers of a step share."""

    def forward(self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: Any, scale: float) -> torch.Tensor:
        """One layer's attention, [T, N, D]."""


class LatentAttention(Protocol):
    """A backend for cached latents; see kernels.latent_attention, and PagedAttention for the attribute."""

    reads_unwritten_slots: bool

    def plan(self, batch: AttentionBatch) -> Any:
        """What all layers of a step share."""

    def forward(
        self, q_TNX: torch.Tensor, cache: Cache, plan: Any, scale: float, value_dim: int, selection: Any
    ) -> torch.Tensor:
        """One layer's mixes of latents, [T, N, value_dim]."""

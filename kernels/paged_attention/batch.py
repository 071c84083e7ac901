"""The batch of an attention kernel, and the protocols of its backends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from kernels.attention_pattern import FULL, AttentionPattern
from kernels.kv_cache import Cache


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The sequences of a packed step (kernels.paged_attention). Decoding sequences (one query each) come first.

    Attributes:
        query_lens: number of tokens of each sequence in this step.
        context_lens: number of cached positions of each sequence, this step's tokens included.
        block_tables: block ids of each sequence, in order of position. Ids of blocks that no query sees are not read.
        block_size: slots in a block.
        device: device of a plan's tensors.
        first_blocks: for each sequence, the number of the block that its table begins with; by default 0.
        window: how many positions up to its own a query sees at most; None: all of them.
    """

    query_lens: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    block_size: int
    device: torch.device
    first_blocks: list[int] = field(default_factory=list)
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.first_blocks:
            object.__setattr__(self, "first_blocks", [0] * len(self.block_tables))

    def only(self, members: list[int]) -> AttentionBatch:
        """The batch of these sequences only, in the given order."""
        return AttentionBatch(
            [self.query_lens[i] for i in members],
            [self.context_lens[i] for i in members],
            [self.block_tables[i] for i in members],
            self.block_size,
            self.device,
            [self.first_blocks[i] for i in members],
            self.window,
        )

    def first_read(self, i: int) -> int:
        """The number of the first block that a query of sequence i sees."""
        if self.window is None:
            return 0
        return max(0, self.context_lens[i] - self.query_lens[i] - self.window + 1) // self.block_size

    def read_blocks(self, i: int) -> list[int]:
        """Ids of the blocks from there to the end of the context."""
        first, offset = self.first_read(i), self.first_blocks[i]
        assert first >= offset, "a block that a query sees is released"
        return self.block_tables[i][first - offset : -(-self.context_lens[i] // self.block_size) - offset]

    def num_read(self, i: int) -> int:
        """How many positions of sequence i these blocks hold."""
        return self.context_lens[i] - self.first_read(i) * self.block_size

    @property
    def num_decodes(self) -> int:
        """Number of sequences at the front with one query each."""
        return next((i for i, n in enumerate(self.query_lens) if n != 1), len(self.query_lens))


class PagedAttention(Protocol):
    """A backend; see kernels.paged_attention.

    Attributes:
        reads_unwritten_slots: the backend multiplies slots after a sequence's last position by zero instead of skipping
            them, so these slots must not contain NaN.
    """

    reads_unwritten_slots: bool

    def plan(self, batch: AttentionBatch, pattern: AttentionPattern = FULL) -> Any:
        """The plan that all layers of a step with the same pattern share."""

    def forward(self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: Any, scale: float) -> torch.Tensor:
        """The attention of one layer, [T, N, D]."""


class LatentAttention(Protocol):
    """A backend for cached latents; see kernels.latent_attention. The attribute is explained in PagedAttention."""

    reads_unwritten_slots: bool

    def plan(self, batch: AttentionBatch) -> Any:
        """The plan that all layers of a step share."""

    def forward(
        self, q_TNX: torch.Tensor, cache: Cache, plan: Any, scale: float, value_dim: int, selection: Any
    ) -> torch.Tensor:
        """The weighted sums of latents in one layer, [T, N, value_dim]."""

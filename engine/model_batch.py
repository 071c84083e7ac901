"""A step as the layers see it: the one place where a plan becomes tensors.

Shapes: T tokens of the step, D rotary dimensions, R rows (tokens) whose hidden states are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kernels.paged_attention import AttentionBatch

if TYPE_CHECKING:
    from engine.models.config import ModelConfig
    from engine.models.rope import RotaryTable
    from engine.step import StepPlan


class BatchPlanner(Protocol):
    """What a batch needs of its model."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def rotary_table(self) -> RotaryTable: ...

    def plan(self, batch: AttentionBatch) -> Any:
        """What the attention of all layers shares in a step."""


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """One step's tensors, which every layer reads.

    Attributes:
        token_ids_T: int64.
        cos_TD: rotary cosines of each token's position, fp32; sin_TD likewise.
        slot_mapping_T: the slot of the cache that each token's entry goes to, int64.
        rows_R: the tokens whose hidden states are wanted, int64: those that prompt logprobs are reported of, then the
            last one of each sequence that samples; token 0 where there is none, as no kernel takes an empty product.
        attention_plan: what the model's `plan` returned.
        modality_ids_T: int64; None where the model knows one modality alone.
    """

    token_ids_T: torch.Tensor
    cos_TD: torch.Tensor
    sin_TD: torch.Tensor
    slot_mapping_T: torch.Tensor
    rows_R: torch.Tensor
    attention_plan: Any
    modality_ids_T: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return len(self.token_ids_T)

    def assign(self, other: ModelBatch) -> None:
        """Hold what a smaller batch holds, in this one's tensors."""
        for mine, theirs in (
            (self.token_ids_T, other.token_ids_T),
            (self.cos_TD, other.cos_TD),
            (self.sin_TD, other.sin_TD),
            (self.slot_mapping_T, other.slot_mapping_T),
            (self.rows_R, other.rows_R),
        ):
            mine[: len(theirs)] = theirs
        if self.modality_ids_T is not None and other.modality_ids_T is not None:
            self.modality_ids_T[: other.num_tokens] = other.modality_ids_T
        self.attention_plan.assign(other.attention_plan)

    @classmethod
    def build(cls, plan: StepPlan, model: BatchPlanner, block_size: int, device: torch.device) -> ModelBatch:
        """Make the tensors of a plan that has at least one token."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for item in plan.scheduled:
            token_ids += item.token_ids
            span = range(item.start, item.context_len)
            positions += span
            slots += [item.block_ids[i // block_size] * block_size + i % block_size for i in span]
        positions_T = torch.tensor(positions, device=device)
        cos_TD, sin_TD = model.rotary_table.at(positions_T)
        attention = AttentionBatch(
            query_lens=[item.num_tokens for item in plan.scheduled],
            context_lens=[item.context_len for item in plan.scheduled],
            block_tables=[item.block_ids for item in plan.scheduled],
            block_size=block_size,
            device=device,
        )
        return cls(
            token_ids_T=torch.tensor(token_ids, device=device),
            cos_TD=cos_TD,
            sin_TD=sin_TD,
            slot_mapping_T=torch.tensor(slots, device=device),
            rows_R=torch.tensor(_wanted_rows(plan) or [0], device=device),
            attention_plan=model.plan(attention),
            modality_ids_T=_modality_ids(plan, device) if model.config.num_modalities > 1 else None,
        )


def _modality_ids(plan: StepPlan, device: torch.device) -> torch.Tensor:
    ids = b"".join(item.modalities or bytes(item.num_tokens) for item in plan.scheduled)
    return torch.frombuffer(bytearray(ids), dtype=torch.uint8).to(device, torch.int64)


def _wanted_rows(plan: StepPlan) -> list[int]:
    reported: list[int] = []
    last: list[int] = []
    first = 0
    for item in plan.scheduled:
        if (prompt := item.prompt_logprobs) is not None:
            reported += range(first + prompt.first, first + prompt.first + len(prompt.token_ids))
        first += item.num_tokens
        if item.sample is not None:
            last.append(first - 1)
    return reported + last

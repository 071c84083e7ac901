"""A step as the layers see it: the one place where a plan becomes tensors.

Shapes: T tokens of the step, D rotary dimensions, R rows (tokens) whose hidden states are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kernels.paged_attention import AttentionBatch

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.models.config import ModelConfig
    from engine.models.rope import RotaryTable
    from engine.step import StepPlan


class BatchPlanner(Protocol):
    """What a batch needs of its model."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def rotary_table(self) -> RotaryTable: ...

    def plan(self, batches: list[AttentionBatch]) -> list[Any]:
        """The attention plans of a step, by view; the batches are by group."""


@dataclass(frozen=True, slots=True)
class AttentionView:
    """What the attention of layers with one view (engine.cache_groups) shares in a step.

    Attributes:
        slot_mapping_T: the slot of the cache that each token's entry goes to, int64; one tensor for all views of a
            group.
        plan: one of those that the model's `plan` returned.
    """

    slot_mapping_T: torch.Tensor
    plan: Any


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """One step's tensors, which every layer reads.

    Attributes:
        token_ids_T: int64.
        cos_TD: rotary cosines of each token's position, fp32; sin_TD likewise.
        rows_R: the tokens whose hidden states are wanted, int64; token 0 where none is, as no kernel takes an empty
            product.
        views: what attention needs, by the number of a layer's view.
        modality_ids_T: int64; None where the model knows one modality alone.
    """

    token_ids_T: torch.Tensor
    cos_TD: torch.Tensor
    sin_TD: torch.Tensor
    rows_R: torch.Tensor
    views: list[AttentionView]
    modality_ids_T: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return len(self.token_ids_T)

    def assign(self, other: ModelBatch) -> None:
        """Hold what a smaller batch holds, in this one's tensors."""
        views = list(zip(self.views, other.views, strict=True))
        slots = {id(mine.slot_mapping_T): (mine.slot_mapping_T, theirs.slot_mapping_T) for mine, theirs in views}
        for mine, theirs in (
            (self.token_ids_T, other.token_ids_T),
            (self.cos_TD, other.cos_TD),
            (self.sin_TD, other.sin_TD),
            (self.rows_R, other.rows_R),
            *slots.values(),
        ):
            mine[: len(theirs)] = theirs
        if self.modality_ids_T is not None and other.modality_ids_T is not None:
            self.modality_ids_T[: other.num_tokens] = other.modality_ids_T
        for view, others in views:
            view.plan.assign(others.plan)

    @classmethod
    def build(
        cls, plan: StepPlan, model: BatchPlanner, block_size: int, device: torch.device, rows: Collection[int] = ()
    ) -> ModelBatch:
        """Make the tensors of a plan that has at least one token; `rows` are the tokens that heads want."""
        token_ids: list[int] = []
        positions: list[int] = []
        for item in plan.scheduled:
            token_ids += item.token_ids
            positions += range(item.start, item.context_len)
        cos_TD, sin_TD = model.rotary_table.at(positions)
        return cls(
            token_ids_T=torch.tensor(token_ids, device=device),
            cos_TD=cos_TD,
            sin_TD=sin_TD,
            rows_R=torch.tensor(rows or (0,), device=device),
            views=_views(plan, model, block_size, device),
            modality_ids_T=_modality_ids(plan, device) if model.config.num_modalities > 1 else None,
        )


def _views(plan: StepPlan, model: BatchPlanner, block_size: int, device: torch.device) -> list[AttentionView]:
    starts = [item.start for item in plan.scheduled]
    query_lens = [len(item.token_ids) for item in plan.scheduled]
    context_lens = list(map(add, starts, query_lens))
    slot_mappings, batches = [], []
    for group in range(len(model.config.cache_groups.groups)):
        tables = [item.block_tables[group] for item in plan.scheduled]
        slots: list[int] = []
        for start, stop, table in zip(starts, context_lens, tables, strict=True):
            ids, before = table.ids, table.first * block_size  # the position of its first slot
            for i in range(start - before, stop - before):
                slots.append(ids[i // block_size] * block_size + i % block_size)  # noqa: PERF401  most are decodes
        slot_mappings.append(torch.tensor(slots, device=device))
        batches.append(
            AttentionBatch(
                query_lens=query_lens,
                context_lens=context_lens,
                block_tables=[table.ids for table in tables],
                block_size=block_size,
                device=device,
                first_blocks=[table.first for table in tables],
            )
        )
    groups = [view.group for view in model.config.cache_groups.views]
    return [AttentionView(slot_mappings[g], made) for g, made in zip(groups, model.plan(batches), strict=True)]


def _modality_ids(plan: StepPlan, device: torch.device) -> torch.Tensor:
    ids = b"".join(item.modalities or bytes(item.num_tokens) for item in plan.scheduled)
    return torch.frombuffer(bytearray(ids), dtype=torch.uint8).to(device, torch.int64)

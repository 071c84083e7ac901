"""The indexer, native for decoding queries (native.cpp), by torch for prompts. Contract: kernels.lightning_indexer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels import native
from kernels.lightning_indexer.torch_ops import Selection, select_prefills

if TYPE_CHECKING:
    import torch

    from kernels.native._kernels import AttentionPlan
    from kernels.paged_attention.torch_ops import Prefill


@dataclass(frozen=True, slots=True)
class SparsePlan:
    """The plan of a step whose queries may select positions.

    Attributes:
        whole: for a step in which none does.
        decodes: of the decoding sequences alone, which are the first `num_decodes` tokens; None if there are none.
        longest_decode: positions of the longest one's context.
        prefills: the other sequences.
    """

    whole: AttentionPlan
    decodes: AttentionPlan | None
    num_decodes: int
    longest_decode: int
    prefills: list[Prefill]


def lightning_indexer(
    q_THI: torch.Tensor, weights_TH: torch.Tensor, cache: torch.Tensor, plan: SparsePlan, topk: int
) -> Selection | None:
    positions = None
    if plan.decodes is not None and plan.longest_decode > topk:
        rows = slice(plan.num_decodes)
        positions = native.library.lightning_indexer(q_THI[rows], weights_TH[rows], cache, plan.decodes, topk)
    visible = select_prefills(q_THI, weights_TH, cache, plan.prefills, topk)
    if positions is None and all(kept is None for kept in visible):
        return None
    return Selection([positions], visible)

"""The order in which stages run micro batches: torch.distributed.pipelining's 1F1B, over micro batches of any width.

Stages pass hidden states of one shape within a run of the schedule, so micro batches are padded to the widest of them.
The next run may have another width: the shape is told to torch, which then needs no pass to find it.

Shapes: B rows, T padded tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F

from training.batch import IGNORED, Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.distributed.pipelining.schedules import PipelineScheduleSingle

    from training.objectives.objective import Objective
    from training.parallel.ranks import Ranks
    from training.parallel.stage import Stage


class Pipeline:
    """Runs a stage in step with the others. All ranks of a pipeline call each method together, on equal batches."""

    def __init__(self, stage: Stage, ranks: Ranks) -> None:
        self._stage, self._ranks = stage, ranks
        self._made: tuple[tuple[int, ...], PipelineScheduleSingle] | None = None

    def run(self, objective: Objective, batches: Sequence[Batch], scale: float) -> None:
        """All micro batches forward, and backward too where gradients are enabled."""
        for equal in _of_one_shape(batches):
            self._stage.prepare(objective, equal, scale)
            schedule = self._schedule(equal)
            numbers = torch.arange(len(equal))
            target = numbers if self._ranks.is_last_stage else None
            run = schedule.step if torch.is_grad_enabled() else schedule.eval
            run(number=numbers, target=target, return_outputs=False)

    def _schedule(self, batches: Sequence[Batch]) -> PipelineScheduleSingle:
        """The schedule for so many micro batches of this shape; the last one is kept."""
        key = (len(batches), *batches[0].tokens.token_ids_BT.shape)
        if self._made is None or self._made[0] != key:
            # fewer micro batches than stages: 1F1B refuses them, and could not do better than one after the other
            kind = Schedule1F1B if len(batches) >= self._ranks.degrees.pipeline else ScheduleGPipe
            stage = self._torch_stage(*key[1:])
            self._made = key, kind(stage, len(batches), loss_fn=lambda loss, _: loss, scale_grads=False)
        return self._made[1]

    def _torch_stage(self, rows: int, width: int) -> PipelineStage:
        ranks, hidden_size = self._ranks, self._stage.part.config.hidden_size
        hidden_BTH = torch.empty(rows, width, hidden_size, device="meta", requires_grad=True)
        loss = torch.empty((), device="meta", requires_grad=True)
        return PipelineStage(
            self._stage,
            ranks.pipeline,
            ranks.degrees.pipeline,
            ranks.device,
            input_args=() if ranks.is_first_stage else (hidden_BTH,),
            output_args=(loss,) if ranks.is_last_stage else (hidden_BTH,),
            group=ranks.group("pipeline"),
        )


def _of_one_shape(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Runs of batches with equal numbers of rows, padded to the widest of the run."""
    for _, run in groupby(batches, key=lambda batch: len(batch.targets_BT)):
        equal = list(run)
        width = max(batch.targets_BT.shape[1] for batch in equal)
        yield [_widen(batch, width) for batch in equal]


def _widen(batch: Batch, width: int) -> Batch:
    """The batch with more padding; no value that counts is another one."""
    more = (0, width - batch.targets_BT.shape[1])
    if not more[1]:
        return batch
    tokens = replace(
        batch.tokens,
        token_ids_BT=F.pad(batch.tokens.token_ids_BT, more),
        modality_ids_BT=F.pad(batch.tokens.modality_ids_BT, more),
    )
    return replace(batch, tokens=tokens, targets_BT=F.pad(batch.targets_BT, more, value=IGNORED))

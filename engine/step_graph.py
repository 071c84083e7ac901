"""A model's forward, captured once and replayed for every step that fits, as CUDA graphs do it.

Python and torch between native calls cost a quarter of a decoding step. A replay makes the same native calls on the
same tensors, so each step's batch is copied to where the captured calls look for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import torch

from engine.model_batch import ModelBatch
from engine.step import BlockTable, ScheduledSequence, StepPlan
from kernels.native.capture import Graph, MemoryPool, NotCapturableError

if TYPE_CHECKING:
    from engine.models.decoder import Decoder
    from kernels.kv_cache import Cache

logger = logging.getLogger(__name__)

MOST_ROWS = 512  # tokens of a captured step; in larger steps, what lies between native calls costs little


class StepGraph(Protocol):
    """A captured `Decoder.forward`; a version for each kind of device."""

    def can_replay(self, batch: ModelBatch) -> bool:
        """Whether `replay` computes this batch as the model does. Changes nothing."""

    def replay(self, batch: ModelBatch) -> torch.Tensor:
        """Hidden states of the batch's wanted rows, [R, H]; valid until the next replay."""


class NativeStepGraph:
    """Captured calls of the native CPU kernels (kernels.native.capture)."""

    def __init__(self, model: Decoder, kv_caches: list[tuple[Cache, ...]], block_size: int, most_rows: int) -> None:
        """Capture a step of most_rows tokens, all of them wanted.

        Raises:
            NotCapturableError: the model computes with other than native kernels.
        """
        self._most_rows = most_rows
        tables = [BlockTable([0]) for _ in model.config.cache_groups.groups]
        plan = StepPlan([ScheduledSequence(0, [0], 0, tables)] * most_rows)
        self._batch = ModelBatch.build(plan, model, block_size, torch.device("cpu"), range(most_rows))
        self._graph = Graph(MemoryPool(), most_rows, most_rows)
        with self._graph.capture():
            self._hidden_RH = model.forward(self._batch, kv_caches, self._batch.rows_R)

    def can_replay(self, batch: ModelBatch) -> bool:
        return batch.num_tokens <= self._most_rows and all(view.plan.is_capturable for view in batch.views)

    def replay(self, batch: ModelBatch) -> torch.Tensor:
        self._batch.assign(batch)
        self._graph.replay(batch.num_tokens, len(batch.rows_R))
        return self._hidden_RH[: len(batch.rows_R)]


def capture(model: Decoder, kv_caches: list[tuple[Cache, ...]], block_size: int) -> StepGraph | None:
    """A graph of the model on these caches; None, with a line in the log, where it cannot be captured."""
    if not model.ops.can_capture:
        return None
    try:
        return NativeStepGraph(model, kv_caches, block_size, MOST_ROWS)
    except (NotCapturableError, OSError) as error:  # OSError: no address space
        logger.info("steps are computed without a graph, which makes the smaller ones slower: %s", error)
        return None

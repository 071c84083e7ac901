"""From a StepPlan to tensors, through the model, to a StepResult.

Owns the model, its heads, the KV pool and the captured graph of one rank. Keeps nothing of a sequence but its keys and
values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine import step_graph
from engine.heads.head import heads_of
from engine.kv_cache_pool import KVCachePool
from engine.model_batch import ModelBatch
from engine.models.work import Work, step_work
from engine.step import StepPlan, StepResult

if TYPE_CHECKING:
    from engine.kv_cache_pool import CacheLayout
    from engine.models.decoder import Decoder


class ModelRunner:
    """Runs steps. Cost of a step: O(its tokens) in the layers, plus attention over the contexts of its sequences."""

    def __init__(self, model: Decoder, layout: CacheLayout, num_blocks: int, device: torch.device) -> None:
        """Make the KV pool and capture the model's forward on it."""
        self.model = model
        self._heads = heads_of(model)
        self.kv_pool = KVCachePool(layout, num_blocks, device)
        self.graph = step_graph.capture(model, self.kv_pool.layers, layout.block_size)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a step: fill the cache, then have the heads read what they want of the hidden states."""
        if self.model.attention.reads_unwritten_slots:
            self.kv_pool.clear(_entered_blocks(plan, self.kv_pool.block_size))
        wanted = [(head, rows) for head in self._heads if (rows := head.rows(plan))]
        all_rows = [row for _, rows in wanted for row in rows]
        batch = ModelBatch.build(plan, self.model, self.kv_pool.block_size, self.kv_pool.device, all_rows)
        if self.graph is not None and self.graph.can_replay(batch):
            hidden_RH = self.graph.replay(batch)
        else:
            hidden_RH = self.model.forward(batch, self.kv_pool.layers, batch.rows_R)
        result, first = StepResult([]), 0
        for head, rows in wanted:
            head.add(result, plan, hidden_RH[first : first + len(rows)])
            first += len(rows)
        return result

    def prepare(self, num_taken: int) -> bool:
        """Warm some memory of blocks behind the first num_taken; False if there is none to warm."""
        return self.kv_pool.prepare(num_taken)

    def work(self, plan: StepPlan) -> Work:
        """What a step must compute and read at least."""
        return step_work(
            self.model.config,
            [item.num_tokens for item in plan.scheduled],
            [item.context_len for item in plan.scheduled],
            sum(item.sample is not None for item in plan.scheduled),
            weight_size=self.model.weight_size,
            entry_size=self.kv_pool.entry_size,
            int8_share=self.model.int8_share,
        )


def _entered_blocks(plan: StepPlan, block_size: int) -> list[int]:
    """Blocks whose first slot the step writes."""
    return [
        block
        for item in plan.scheduled
        for table in item.block_tables
        for block in table.ids[-(-item.start // block_size) - table.first :]
    ]

"""From a StepPlan to tensors, through the model, to a StepResult.

Owns the model, the KV pool and the captured graph of one rank. Keeps nothing of a sequence but its keys and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine import step_graph
from engine.kv_cache_pool import KVCachePool
from engine.model_batch import ModelBatch
from engine.models.work import Work, step_work
from engine.sampler import sample, top_logprobs
from engine.step import StepPlan, StepResult

if TYPE_CHECKING:
    from engine.kv_cache_pool import CacheLayout
    from engine.models.decoder import Decoder
    from engine.protocol import TokenLogprobs

_LOGPROB_ROWS = 64  # prompt positions whose logits are held at a time


class ModelRunner:
    """Runs steps. Cost of a step: O(its tokens) in the layers, plus attention over the contexts of its sequences."""

    def __init__(self, model: Decoder, layout: CacheLayout, num_blocks: int, device: torch.device) -> None:
        """Make the KV pool and capture the model's forward on it."""
        self.model = model
        self.kv_pool = KVCachePool(layout, num_blocks, device)
        self.graph = step_graph.capture(model, self.kv_pool.layers, layout.block_size)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a step: fill the cache, sample where sequences reach their last token."""
        if self.model.attention.reads_unwritten_slots:
            self.kv_pool.clear(_entered_blocks(plan, self.kv_pool.block_size))
        batch = ModelBatch.build(plan, self.model, self.kv_pool.block_size, self.kv_pool.device)
        if self.graph is not None and self.graph.can_replay(batch):
            hidden_RH = self.graph.replay(batch)
        else:
            hidden_RH = self.model.forward(batch, self.kv_pool.layers, batch.rows_R)
        prompt_logprobs, num_rows = self._prompt_logprobs(plan, hidden_RH)
        samples = [item.sample for item in plan.scheduled if item.sample is not None]
        if not samples:
            return StepResult([], prompt_logprobs)
        logits_RV = self.model.logits(hidden_RH[num_rows:])
        return StepResult(sample(logits_RV, samples, self.model.ops.draw), prompt_logprobs)

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
        )

    def _prompt_logprobs(self, plan: StepPlan, hidden_RH: torch.Tensor) -> tuple[list[list[TokenLogprobs]], int]:
        """What the plan wants to know of prompts, and how many of the rows that took."""
        reports: list[list[TokenLogprobs]] = []
        row = 0
        for prompt in [item.prompt_logprobs for item in plan.scheduled if item.prompt_logprobs is not None]:
            reports.append([])
            for first in range(0, len(prompt.token_ids), _LOGPROB_ROWS):
                token_ids = prompt.token_ids[first : first + _LOGPROB_ROWS]
                logits_RV = self.model.logits(hidden_RH[row : row + len(token_ids)])
                reports[-1] += top_logprobs(
                    logits_RV.float().log_softmax(-1), token_ids, [prompt.count] * len(token_ids)
                )
                row += len(token_ids)
        return reports, row


def _entered_blocks(plan: StepPlan, block_size: int) -> list[int]:
    """Blocks whose first slot the step writes."""
    return [
        block
        for item in plan.scheduled
        for table in item.block_tables
        for block in table.ids[-(-item.start // block_size) - table.first :]
    ]

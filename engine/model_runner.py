"""From a StepPlan to tensors, through the model, to a StepResult. Owns the KV tensors; knows nothing of who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.models.decoder import ModelBatch
from engine.sampler import sample, top_logprobs
from engine.step import StepPlan, StepResult
from kernels.paged_attention import AttentionBatch

if TYPE_CHECKING:
    from engine.kv_cache_pool import KVCachePool
    from engine.models.decoder import Decoder
    from engine.models.work import Work
    from engine.protocol import TokenLogprobs
    from engine.step import SampledToken, ScheduledSequence

_LOGPROB_ROWS = 64  # prompt positions whose logits are held at a time


class ModelRunner:
    """Runs steps. Cost of a step: O(its tokens) in the layers, plus attention over the contexts of its sequences."""

    def __init__(self, model: Decoder, kv_pool: KVCachePool) -> None:
        self._model, self._kv_pool, self._device = model, kv_pool, kv_pool.device

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Compute a step: fill the cache, sample where sequences reach their last token."""
        if self._model.attention.reads_unwritten_slots:
            self._kv_pool.clear(self._entered_blocks(plan))
        batch = self._prepare(plan)
        rows = self._wanted_rows(plan)
        if not rows:
            self._model.forward(batch, self._kv_pool.layers, torch.tensor([0]))
            return StepResult([], [[] for _ in plan.scheduled])
        hidden_RH = self._model.forward(batch, self._kv_pool.layers, torch.tensor(rows))
        prompt_logprobs, sampled, first = [], [], 0
        for item in plan.scheduled:
            start, stop = self._reported(item)
            prompt_logprobs.append(self._prompt_logprobs(item, start, stop, hidden_RH[first : first + stop - start]))
            first += stop - start
            if item.samples:
                sampled.append(first)
                first += 1
        if not sampled:
            return StepResult([], prompt_logprobs)
        logits_RV = self._model.logits(hidden_RH[sampled] if len(sampled) < len(rows) else hidden_RH)
        return StepResult(self._sample(plan, logits_RV), prompt_logprobs)

    def _reported(self, item: ScheduledSequence) -> tuple[int, int]:
        if item.seq.sampling.prompt_logprobs is None:
            return 0, 0
        start = max(item.start, len(item.seq.prompt_logprobs))
        return start, max(start, min(item.start + item.num_tokens, item.seq.num_prompt_tokens - 1))

    def _wanted_rows(self, plan: StepPlan) -> list[int]:
        rows: list[int] = []
        first = 0
        for item in plan.scheduled:
            start, stop = self._reported(item)
            rows += range(first + start - item.start, first + stop - item.start)
            first += item.num_tokens
            if item.samples:
                rows.append(first - 1)
        return rows

    def work(self, plan: StepPlan) -> Work:
        """What a step must compute and read at least."""
        return self._model.work(
            [item.num_tokens for item in plan.scheduled],
            [item.start + item.num_tokens for item in plan.scheduled],
            sum(item.samples for item in plan.scheduled),
            self._kv_pool.entry_size,
        )

    def _sample(self, plan: StepPlan, logits_RV: torch.Tensor) -> list[SampledToken]:
        sampling = [item.seq for item in plan.scheduled if item.samples]
        return sample(logits_RV, sampling, self._model.ops.draw)

    def _entered_blocks(self, plan: StepPlan) -> list[int]:
        """Blocks whose first slot this step writes."""
        size = self._kv_pool.block_size
        return [
            block
            for item in plan.scheduled
            for block in item.seq.block_table[-(-item.start // size) : -(-(item.start + item.num_tokens) // size)]
        ]

    def _prepare(self, plan: StepPlan) -> ModelBatch:
        token_ids: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        block_size = self._kv_pool.block_size
        for item in plan.scheduled:
            table = item.seq.block_table
            span = range(item.start, item.start + item.num_tokens)
            token_ids += item.seq.token_ids[span.start : span.stop]
            positions += span
            blocks += [table[position // block_size] for position in span]
        positions_T = torch.tensor(positions, device=self._device)
        cos_TD, sin_TD = self._model.rotary_table.at(positions_T)
        attention = AttentionBatch(
            query_lens=[item.num_tokens for item in plan.scheduled],
            context_lens=[item.start + item.num_tokens for item in plan.scheduled],
            block_tables=[item.seq.block_table for item in plan.scheduled],
            block_size=block_size,
            device=self._device,
        )
        return ModelBatch(
            token_ids_T=torch.tensor(token_ids, device=self._device),
            cos_TD=cos_TD,
            sin_TD=sin_TD,
            blocks_T=torch.tensor(blocks, device=self._device),
            offsets_T=positions_T % block_size,
            attention_plan=self._model.plan(attention),
        )

    def _prompt_logprobs(
        self, item: ScheduledSequence, start: int, stop: int, hidden_CH: torch.Tensor
    ) -> list[TokenLogprobs]:
        reports: list[TokenLogprobs] = []
        for first in range(start, stop, _LOGPROB_ROWS):
            last = min(first + _LOGPROB_ROWS, stop)
            logits = self._model.logits(hidden_CH[first - start : last - start])
            following = item.seq.token_ids[first + 1 : last + 1]
            count = item.seq.sampling.prompt_logprobs or 0
            reports += top_logprobs(logits.float().log_softmax(-1), following, [count] * len(following))
        return reports

"""From a StepPlan to tensors, through the model, to a StepResult. Owns the KV tensors; knows nothing of who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.models.decoder import ModelBatch
from engine.recorded_decoder import RecordedDecoder
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
        self._decoder = RecordedDecoder(model, kv_pool)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Compute a step: fill the cache, sample where sequences reach their last token."""
        if self._model.attention.reads_unwritten_slots:
            self._kv_pool.clear(self._entered_blocks(plan))
        mixed_TX, residual_TH = self._decoder.mix(self._prepare(plan))
        if plan.num_decodes == len(plan.scheduled):
            logits_RV = self._decoder.logits(mixed_TX, residual_TH)
            return StepResult(self._sample(plan, logits_RV), [[] for _ in plan.scheduled])
        last_rows, prompt_logprobs, first = [], [], 0
        for item in plan.scheduled:
            rows = slice(first, first + item.num_tokens)
            prompt_logprobs.append(self._prompt_logprobs(item, mixed_TX[rows], residual_TH[rows]))
            first += item.num_tokens
            if item.samples:
                last_rows.append(first - 1)
        if not last_rows:
            return StepResult([], prompt_logprobs)
        logits_RV = self._decoder.logits(mixed_TX[last_rows], residual_TH[last_rows])
        return StepResult(self._sample(plan, logits_RV), prompt_logprobs)

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
        return sample(logits_RV, sampling, self._model.kernels.draw)

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
        slots: list[int] = []
        block_size = self._kv_pool.block_size
        for item in plan.scheduled:
            table = item.seq.block_table
            span = range(item.start, item.start + item.num_tokens)
            token_ids += item.seq.token_ids[span.start : span.stop]
            positions += span
            slots += [table[position // block_size] * block_size + position % block_size for position in span]
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
            slot_mapping_T=torch.tensor(slots, device=self._device),
            attention_plan=self._model.plan(attention),
        )

    def _prompt_logprobs(
        self, item: ScheduledSequence, mixed_CX: torch.Tensor, residual_CH: torch.Tensor
    ) -> list[TokenLogprobs]:
        """Logprobs of the prompt tokens that follow those of a chunk (its rows of each), if not yet collected."""
        seq = item.seq
        count = seq.sampling.prompt_logprobs
        if count is None:
            return []
        reports: list[TokenLogprobs] = []
        start = max(item.start, len(seq.prompt_logprobs))
        stop = min(item.start + item.num_tokens, seq.num_prompt_tokens - 1)
        for first in range(start, stop, _LOGPROB_ROWS):
            last = min(first + _LOGPROB_ROWS, stop)
            rows = slice(first - item.start, last - item.start)
            logits = self._decoder.logits(mixed_CX[rows], residual_CH[rows])
            following = seq.token_ids[first + 1 : last + 1]
            reports += top_logprobs(logits.float().log_softmax(-1), following, [count] * len(following))
        return reports

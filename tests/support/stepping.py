"""A batcher without an engine: sequences go in, and steps sample what the test says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.protocol import SchedulingParams, TokenLogprobs
from engine.step import SampledToken, StepResult
from tests.support.sequences import make_sequence

if TYPE_CHECKING:
    from engine.protocol import SequenceOutput
    from engine.sequence import Sequence
    from engine.step import StepPlan


def make_batcher(num_blocks: int = 100, block_size: int = 4, batch: int = 8, tokens: int = 64) -> DynamicBatcher:
    """Without prefix caching, as most of these prompts are all zeros, and with steps as full as they may be."""
    cache = KVCacheManager(num_blocks, block_size, prefix_caching=False)
    return DynamicBatcher(cache, batch, tokens, prefill_share=math.inf)


def of(name: str, num_tokens: int = 4, *, max_tokens: int = 16, **scheduling: Any) -> Sequence:
    """A sequence with these scheduling parameters."""
    return make_sequence(name, num_tokens, max_tokens=max_tokens, scheduling=SchedulingParams(0.0, **scheduling))


def add(batcher: DynamicBatcher, *seqs: Sequence) -> None:
    for seq in seqs:
        batcher.add(seq)


def result_of(plan: StepPlan, token_id: int | None = 5) -> StepResult:
    reports = [[TokenLogprobs(0.0, [], [])] * len(item.prompt_logprobs.token_ids) for item in plan.scheduled
               if item.prompt_logprobs is not None]  # fmt: skip
    return StepResult([SampledToken(token_id) for item in plan.scheduled if item.sample is not None], reports)


def step(batcher: DynamicBatcher, token_id: int | None = 5, now: float = 0.0) -> list[SequenceOutput]:
    plan = batcher.schedule(now)
    return batcher.update(plan, result_of(plan, token_id))


def shares(batcher: DynamicBatcher, plan: StepPlan) -> list[tuple[str, int, int]]:
    """(request, start, tokens) of each scheduled sequence."""
    return [(batcher._scheduled(item).request_id, item.start, item.num_tokens) for item in plan.scheduled]

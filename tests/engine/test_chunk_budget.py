"""Chunks of prompts that keep running streams smooth."""

import pytest

from engine.chunk_budget import ChunkBudget
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from tests.support.sequences import make_sequence
from tests.support.stepping import add, result_of


def learn(budget, seconds, num_decodes=8, num_prompts=1, steps=100):
    """Compute full steps, and every fifth without prompts; prompt tokens that the next one may have."""
    for i in range(steps):
        chunk = 0 if i % 5 == 0 else budget.tokens(num_decodes, num_prompts) - num_decodes
        budget.observe(num_decodes, chunk, seconds(chunk))
    return budget.tokens(num_decodes, num_prompts) - num_decodes


def test_where_nothing_decodes_the_budget_is_the_limit():
    assert ChunkBudget(512, 0.05).tokens(0) == ChunkBudget(512, share=0.1).tokens(0) == 512


@pytest.mark.parametrize("target", [0.02, 0.05, 0.2])
def test_chunks_settle_where_steps_last_as_long_as_the_target(target):
    chunk = learn(ChunkBudget(512, target), lambda chunk: 0.010 + 0.0004 * chunk)
    assert 0.7 * target <= 0.010 + 0.0004 * chunk <= target or chunk == 4


def test_prompts_advance_however_small_the_target_is():
    assert learn(ChunkBudget(512, 1e-6), lambda _: 0.5) == 4


@pytest.mark.parametrize(("share", "num_prompts"), [(0.8, 1), (0.8, 4), (2, 1)])
def test_chunks_settle_where_prompts_take_their_share_of_the_decodes_time(share, num_prompts):
    budget = ChunkBudget(512, share=share)
    assert learn(budget, lambda chunk: 0.02 + 0.0002 * chunk, num_prompts=num_prompts) == pytest.approx(
        100 * share * num_prompts, 0.05
    )


def test_the_share_holds_from_the_first_chunk_on_where_prompts_have_been_computed_alone():
    budget = ChunkBudget(512, share=0.8)
    budget.observe(0, 512, 0.002 + 512 * 0.0002)
    for _ in range(100):
        budget.observe(1, 0, 0.01)
    assert budget.tokens(1) - 1 == pytest.approx(40, abs=8)
    for _ in range(100):  # and streams that were computed long ago are not forgotten
        budget.observe(0, 512, 0.002 + 512 * 0.0002)
    assert budget.tokens(1) - 1 == pytest.approx(40, abs=8)


def test_dearer_tokens_make_smaller_chunks():
    """As where a long prompt's later chunks attend to all the earlier ones."""
    budget = ChunkBudget(512, share=0.8)
    assert learn(budget, lambda chunk: 0.02 + 0.0002 * chunk) == pytest.approx(80, 0.05)
    assert learn(budget, lambda chunk: 0.02 + 0.0008 * chunk) == pytest.approx(20, 0.1)


def test_a_prompt_brings_its_own_share_when_it_starts_and_none_while_it_waits_for_anothers_prefix():
    batcher = DynamicBatcher(KVCacheManager(400, 4), 8, 64, prefill_share=0.85)

    def chunks(plan):
        return [
            (batcher._running[item.sequence_id].request_id, item.num_tokens)
            for item in plan.scheduled[plan.num_decodes :]
        ]

    def run(steps):
        for _ in range(steps):
            plan = batcher.schedule(0)
            batcher.observe(plan, 0.010 + 0.001 * (plan.num_tokens - plan.num_decodes))
            batcher.update(plan, result_of(plan))
        return chunks(plan)

    add(batcher, make_sequence("stream", 1, max_tokens=100))
    run(2)
    add(batcher, *(make_sequence("choices", prompt=[7] * 400, index=i) for i in range(4)))
    assert run(4) == [("choices", 8)]  # the others await its blocks
    add(batcher, make_sequence("other", prompt=[8] * 100))
    assert run(1) == [("choices", 8), ("other", 9)]
    assert run(1) == [("other", 17)]  # the shorter one, as the policy says


def test_each_of_several_prompts_that_start_together_brings_one_share():
    batcher = DynamicBatcher(KVCacheManager(400, 4), 8, 64, prefill_share=0.83)
    add(batcher, make_sequence("stream", 1, max_tokens=100))
    for _ in range(2):
        batcher.update(plan := batcher.schedule(0), result_of(plan))
    for chunk in (0, 50):
        batcher._chunk_budget.observe(1, chunk, 0.010 + 0.001 * chunk)
    add(batcher, *(make_sequence(f"p{i}", prompt=[i] * 50) for i in range(3)))
    assert [item.num_tokens for item in batcher.schedule(0).scheduled] == [1, 8, 8, 8]

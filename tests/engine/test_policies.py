"""Which sequence starts next, and which prompt goes on, under each policy."""

import pytest

from engine.chunk_budget import ChunkBudget
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import POLICIES
from tests.support.stepping import add, of, result_of, shares


def order(policy, *seqs):
    batcher = DynamicBatcher(KVCacheManager(1000, 4, prefix_caching=False), 1, 1000, policy=policy)
    add(batcher, *seqs)
    started = []
    while batcher.has_work:
        plan = batcher.schedule(0)
        started += [name for name, start, _ in shares(batcher, plan) if start == 0]
        batcher.abort(started[-1])
    return started


def test_length_takes_the_shortest_and_fcfs_the_first():
    seqs = [("a", 60), ("b", 4), ("c", 20)]
    assert order("length", *(of(*seq) for seq in seqs)) == ["b", "c", "a"]
    assert order("fcfs", *(of(*seq) for seq in seqs)) == ["a", "b", "c"]


def test_priority_takes_the_smallest_number_and_equals_in_order():
    seqs = [of("a", priority=5), of("b", priority=-1), of("c", priority=5), of("d")]
    assert order("priority", *seqs) == ["b", "d", "a", "c"]


def test_fair_shares_alternate_between_keys_whatever_they_ask_for():
    flood = [of(f"f{i}", tenant=b"flood") for i in range(6)]
    polite = [of(f"p{i}", tenant=b"polite") for i in range(2)]
    assert order("fair", *flood, *polite) == ["f0", "p0", "f1", "p1", "f2", "f3", "f4", "f5"]


def test_fair_shares_count_tokens_and_weights():
    long = [of(f"l{i}", 28, max_tokens=12, tenant=b"long") for i in range(3)]  # 40 tokens each
    short = [of(f"s{i}", 4, max_tokens=16, tenant=b"short") for i in range(5)]  # 20 tokens each
    assert order("fair", *long, *short) == ["l0", "s0", "s1", "l1", "s2", "s3", "l2", "s4"]
    again = [of(f"l{i}", 28, max_tokens=12, tenant=b"long", weight=4.0) for i in range(3)]
    short = [of(f"s{i}", 4, max_tokens=16, tenant=b"short") for i in range(3)]
    assert order("fair", *again, *short) == ["l0", "s0", "l1", "l2", "s1", "s2"]


@pytest.mark.parametrize(("policy", "first"), [("length", "short"), ("fcfs", "long"), ("priority", "short")])
def test_prompts_that_have_begun_go_on_in_the_order_of_the_policy(policy, first):
    batcher = DynamicBatcher(KVCacheManager(400, 4, prefix_caching=False), 8, 64, policy=policy, prefill_share=0.8)

    def run():
        plan = batcher.schedule(0)
        batcher.observe(plan, 0.010 + 0.001 * (plan.num_tokens - plan.num_decodes))
        batcher.update(plan, result_of(plan))
        return [batcher._running[item.sequence_id].request_id for item in plan.scheduled[plan.num_decodes :]]

    add(batcher, of("stream", 1, max_tokens=100))
    run()
    run()
    add(batcher, of("long", 300, priority=1))
    assert run() == ["long"]
    add(batcher, of("short", 60))
    assert run() == ["long", "short"]  # which starts
    assert {tuple(run()) for _ in range(3)} == {(first,)}


def test_by_a_mere_order_nobody_goes_first():
    policy = POLICIES["fcfs"](8, ChunkBudget(64))
    assert not policy.goes_first(of("a"))
    with pytest.raises(AssertionError, match=r"^nobody goes first$"):
        policy.gives_way([of("b")])

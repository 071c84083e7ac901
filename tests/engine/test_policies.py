"""Which sequence starts next: each policy, stepping over what does not fit, and chunks that keep streams smooth."""

import pytest

from engine import waiting_queue
from engine.chunk_budget import ChunkBudget
from engine.dynamic_batcher import LOOK_AHEAD, DynamicBatcher
from engine.fair_share import FairShare
from engine.kv_cache_manager import KVCacheManager
from engine.protocol import Terms
from engine.sequence import SequenceStatus
from engine.waiting_queue import MAX_PASSED, WaitingQueue
from tests.engine.sequences import make_sequence
from tests.engine.test_dynamic_batcher import add, make_batcher, result_of, shares, step


def order(policy, *seqs):
    batcher = DynamicBatcher(KVCacheManager(1000, 4, prefix_caching=False), 1, 1000, policy=policy)
    add(batcher, *seqs)
    started = []
    while batcher.has_work:
        plan = batcher.schedule(0)
        started += [name for name, start, _ in shares(batcher, plan) if start == 0]
        batcher.abort(started[-1])
    return started


def of(name, num_tokens=4, *, max_tokens=16, **terms):
    return make_sequence(name, num_tokens, max_tokens=max_tokens, terms=Terms(0.0, **terms))


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


def test_a_key_is_given_back_what_its_sequences_did_not_generate():
    policy = FairShare(8, ChunkBudget(64))
    policy.place(of("other", tenant=b"other"), 4, 0)  # somebody else is there all the time
    ended_early = of("a", max_tokens=1000, tenant=b"a")
    assert policy.place(ended_early, 4, 0) == 0
    policy.ended(ended_early)
    assert policy.place(of("b", tenant=b"a"), 4, 1) == 4


def test_an_idle_key_saves_nothing_up():
    policy = FairShare(8, ChunkBudget(64))
    for _ in range(10):
        seq = of("a", tenant=b"busy")
        seq.place = (policy.place(seq, 4, 0), 0)
        policy.started(seq, in_turn=True)
        policy.stopped(seq)
    late = policy.place(of("b", tenant=b"late"), 4, 0)
    assert late == 180  # where the busy key's last one started, not 0


def nearly_full():
    """A batcher of ten blocks, of which a stream holds six, later seven to nine; first come, first served."""
    batcher = DynamicBatcher(KVCacheManager(10, 4, prefix_caching=False), 16, 64, policy="fcfs")
    add(batcher, make_sequence("holder", 24, max_tokens=10))
    step(batcher)
    return batcher


def test_what_does_not_fit_is_stepped_over():
    batcher = nearly_full()
    add(batcher, large := of("large", 17, max_tokens=1), of("small", 1, max_tokens=1))
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))] == ["holder", "small"]
    assert (large.status, large.num_passed) == (SequenceStatus.WAITING, 1)


def test_after_enough_have_passed_nobody_else_does(monkeypatch):
    monkeypatch.setattr(waiting_queue, "MAX_PASSED", 3)
    batcher, started = nearly_full(), []
    add(batcher, of("large", 17, max_tokens=1), *(of(f"small {i}", 1, max_tokens=1) for i in range(8)))
    while batcher.has_work:
        plan = batcher.schedule(0)
        started += [name for name, start, _ in shares(batcher, plan) if start == 0]
        batcher.update(plan, result_of(plan))
    assert started == [f"small {i}" for i in range(3)] + ["large"] + [f"small {i}" for i in range(3, 8)]


def test_one_step_looks_at_a_bounded_number():
    batcher = nearly_full()
    add(batcher, *(of(f"large {i}", 17, max_tokens=1) for i in range(LOOK_AHEAD + 1)), of("small", 1, max_tokens=1))
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))] == ["holder"]
    batcher.abort("large 0")
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))] == ["holder", "small"]


@pytest.mark.parametrize("n", [2, 5])
def test_the_prompt_of_n_sequences_is_computed_once(n):
    batcher = DynamicBatcher(KVCacheManager(100, 4), 8, 64)
    add(batcher, *(make_sequence("r", prompt=list(range(17)), index=i, max_tokens=4) for i in range(n)))
    computed = 0
    while batcher.has_work:
        plan = batcher.schedule(0)
        computed += sum(item.num_tokens for item in plan.scheduled[plan.num_decodes :])
        batcher.update(plan, result_of(plan))
    assert computed <= 17 + (n - 1)  # the last token of each is its own
    batcher.check_idle()


def test_the_queue_forgets_what_ended_while_it_waited():
    queue, seqs = WaitingQueue(), [of(str(i)) for i in range(100)]
    for i, seq in enumerate(seqs):
        seq.place = (i % 7, i)
        queue.push(seq)
    for seq in seqs[:90]:
        seq.status = SequenceStatus.FINISHED
        queue.discard()
    assert len(queue) == 10
    assert len(queue._heap) <= 20
    left = []
    while (seq := queue.next([])) is not None:
        left.append(seq)
    assert left == sorted(seqs[90:], key=lambda seq: seq.place)
    assert len(queue) == 0


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


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_deadline_ends_a_sequence_in_every_state(steps):
    batcher = make_batcher(tokens=8)
    add(batcher, of("late", 20, deadline=5.0), of("other", 4))
    for _ in range(steps):
        step(batcher)
    assert batcher.expire(4.9) == []
    (output,) = batcher.expire(5.0)
    assert (output.request_id, output.finish_reason) == ("late", "timeout")
    batcher.abort("other")
    batcher.check_idle()
    assert batcher.expire(100.0) == []


def test_a_deadline_for_the_start_spares_what_has_started():
    batcher = make_batcher(batch=1)
    add(batcher, of("first", start_deadline=1.0), of("second", start_deadline=1.0))
    step(batcher)
    assert [output.request_id for output in batcher.expire(2.0)] == ["second"]
    assert batcher.stats().num_running == 1


def test_prompts_given_up_before_they_start_cost_their_key_nothing():
    batcher = DynamicBatcher(KVCacheManager(4000, 4, prefix_caching=False), 8, 64, policy="fair")
    add(batcher, *(of(f"flood {i}", 40, tenant=b"flood", max_tokens=40) for i in range(40)))
    step(batcher)
    add(batcher, *(of(f"a {i}", 400, tenant=b"a", max_tokens=10) for i in range(20)))
    for i in range(20):
        batcher.abort(f"a {i}")
    add(batcher, last := of("last", 10, tenant=b"a", max_tokens=2))
    steps = 0
    while last.status is not SequenceStatus.FINISHED:
        step(batcher)
        steps += 1
    assert steps < 20


def test_keys_that_ask_once_are_forgotten():
    batcher = DynamicBatcher(KVCacheManager(1000, 4), 4, 64, policy="fair")
    for i in range(5000):
        add(batcher, of(f"r{i}", tenant=str(i).encode(), max_tokens=1))
        while batcher.has_work:
            step(batcher)
    assert max(len(batcher._policy._ends), len(batcher._policy._served)) <= 1024


def test_many_keys_that_come_and_go_are_forgotten():
    batcher = DynamicBatcher(KVCacheManager(1000, 4), 4, 64, policy="fair")
    for i in range(3000):
        add(batcher, of(f"r{i}", tenant=str(i).encode(), max_tokens=2), of(f"s{i}", tenant=b"stays", max_tokens=2))
        while batcher.has_work:
            step(batcher)
    assert max(len(batcher._policy._ends), len(batcher._policy._served)) < 1100
    batcher.check_idle()


def test_the_underserved_do_not_starve_what_does_not_fit():
    batcher = DynamicBatcher(KVCacheManager(10, 4, prefix_caching=False), 8, 64, policy="fair")
    add(batcher, of("y", tenant=b"y", max_tokens=4), of("z", tenant=b"z", max_tokens=6))
    step(batcher)
    add(batcher, large := of("large", 36, tenant=b"x", max_tokens=2))
    for i in range(2 * MAX_PASSED):  # all the while, one of the others has a place and the other is underserved
        add(batcher, of(f"y{i}", tenant=b"y", max_tokens=4), of(f"z{i}", tenant=b"z", max_tokens=4))
        step(batcher)
        step(batcher)
    assert (large.num_passed, large.finish_reason) == (MAX_PASSED, "length")

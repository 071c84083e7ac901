"""The books of fair shares, rule by rule; what they bring together is in tests/benchmarks/test_simulate.py."""

import math

import pytest

from engine import fair_share
from engine.chunk_budget import ChunkBudget
from engine.dynamic_batcher import DynamicBatcher
from engine.fair_share import BURST, FairShare
from engine.kv_cache_manager import KVCacheManager
from engine.protocol import SchedulingParams
from engine.sequence import SequenceStatus
from engine.waiting_queue import MAX_PASSED
from tests.support.sequences import make_sequence
from tests.support.stepping import add, of, result_of, step


class Books:
    """A policy for a small batch, and the calls that the batcher makes."""

    def __init__(self, max_batch_size=8):
        self.budget = ChunkBudget(64)
        self.policy = FairShare(max_batch_size, self.budget)
        self.running = []

    def arrive(self, tenant, num_tokens=4, max_tokens=16, weight=1.0):
        scheduling = SchedulingParams(0.0, tenant=tenant.encode(), weight=weight)
        seq = make_sequence(num_prompt_tokens=num_tokens, max_tokens=max_tokens, scheduling=scheduling)
        seq.num_charged = num_tokens
        seq.place = self.policy.place(seq, num_tokens, seq.sequence_id), seq.sequence_id
        return seq

    def start(self, seq, *, in_turn=True, num_computed=0):
        seq.status, seq.first_step_time, seq.num_computed_tokens = SequenceStatus.RUNNING, 0.0, num_computed
        self.policy.started(seq, in_turn=in_turn)
        self.running.append(seq)
        return seq

    def run(self, tenant, count=1, **options):
        return [self.start(self.arrive(tenant, **options)) for _ in range(count)]

    def stop(self, seq):
        self.running.remove(seq)
        seq.status = SequenceStatus.WAITING
        self.policy.stopped(seq)


@pytest.fixture
def books():
    return Books()


def test_a_tenants_next_sequence_stands_where_its_last_one_ends(books):
    assert [books.arrive("a", weight=2.0).place[0] for _ in range(3)] == [0, 10, 20]
    assert books.arrive("b").place[0] == 0


def test_the_clock_moves_with_starts_in_turn_only(books):
    _, second = books.arrive("a"), books.arrive("a")
    books.start(second, in_turn=False)
    assert books.arrive("b").place[0] == 0
    books.start(books.arrive("a"), in_turn=True)
    assert books.arrive("c").place[0] == 40


def test_what_was_not_generated_is_given_back_and_the_prompt_of_what_never_started(books):
    books.arrive("other")
    seq = books.start(books.arrive("a"))
    seq.token_ids += [7] * 6  # of 16
    books.policy.ended(seq)
    assert books.arrive("a").place[0] == 4 + 6
    books.policy.ended(books.start(books.arrive("heavy", weight=2.0)))
    assert books.arrive("heavy").place[0] == 4 / 2
    books.policy.ended(books.arrive("b"))
    assert books.arrive("b").place[0] == 0


def test_who_has_at_most_half_of_its_share_of_the_places_goes_first(books):
    assert not books.policy.goes_first(books.arrive("a")), "alone"
    books.run("flood", 6)
    assert books.policy.goes_first(books.arrive("a"))
    books.run("a", 1)
    assert books.policy.goes_first(books.arrive("a")), "2 of 4, with the one that it asks for"
    running = books.run("a", 1)
    assert not books.policy.goes_first(books.arrive("a"))
    assert books.policy.goes_first(running[0]), "2 of 4"
    assert not books.policy.goes_first(books.arrive("flood"))
    assert books.policy.goes_first(books.arrive("b", weight=6.0)), "1 of 6 in 8"
    books.stop(running[0])
    assert books.policy.goes_first(running[0])


def test_who_is_far_ahead_in_tokens_does_not_go_first(books):
    (flood,), (a,) = books.run("flood"), books.run("a", weight=2.0)
    waiting = books.arrive("a", weight=2.0)
    books.policy.computed([(a, 2 * BURST + 100), (flood, 50)])
    assert books.policy.goes_first(waiting)
    books.policy.computed([(a, 2)])
    assert not books.policy.goes_first(waiting)
    books.policy.computed([(flood, 1)])
    assert books.policy.goes_first(waiting)


def test_nobody_is_ahead_of_who_was_away(books):
    (flood,), (a,) = books.run("flood"), books.run("a")
    books.policy.computed([(flood, 10_000), (a, 10_000)])
    (late,) = books.run("late")
    books.policy.computed([(late, BURST + 1)])
    assert not books.policy.goes_first(books.arrive("late")), "it has not saved up 10,000 tokens"
    for seq in list(books.running):
        books.stop(seq)
    books.run("flood")
    (other,) = books.run("other")
    books.policy.computed([(other, BURST + 1)])
    assert not books.policy.goes_first(books.arrive("other"))


def test_the_newest_of_who_has_most_for_its_weight_gives_way(books):
    heavy, flood = books.run("heavy", 4, weight=4.0), books.run("flood", 2)
    books.run("a", 1)
    books.run("heavy", 1, weight=4.0)
    assert books.policy.gives_way(books.running) is flood[1]
    books.stop(flood[1])
    assert books.policy.gives_way(books.running) is not heavy[0]


def test_a_step_is_urgent_for_all_sequences_of_those_who_go_first_and_have_a_prompt():
    books = Books(16)
    books.run("flood", 5)
    assert books.policy.urgent(books.running) == [], "nobody else has come"
    decoding = books.start(books.arrive("a"), num_computed=3)
    assert books.policy.urgent(books.running) == [], "no prompt"
    prompt, other = books.run("a") + books.run("b")
    assert books.policy.urgent(books.running) == [decoding, prompt, other]


def test_steps_are_paced_once_several_have_come(books, monkeypatch):
    monkeypatch.setattr(fair_share, "PACE", 0.05)
    for chunk in (0, 50):
        books.budget.observe(1, chunk, 0.01 + 0.001 * chunk)
    books.budget._share = 10.0
    books.arrive("a")
    assert books.policy.max_tokens(1, 1) == 64
    books.budget._share = 0.5
    assert books.policy.max_tokens(1, 2) == pytest.approx(1 + 10, abs=1), "not paced: half of 0.01 s for each prompt"
    books.budget._share = 10.0
    books.arrive("b")
    assert books.policy.max_tokens(1, 1) == pytest.approx(1 + 35, abs=1)  # 0.9 * 0.05 s less 0.01
    monkeypatch.setattr(fair_share, "PACE", 0.0)
    assert books.policy.max_tokens(1, 1) == pytest.approx(1 + 5, abs=1)  # half of the decodes' 0.01 s
    assert books.policy.max_tokens(0, 1) == 64


def test_all_begin_anew_when_nobody_is_left(books):
    (a,), (b,) = books.run("a"), books.run("b")
    books.policy.computed([(a, 500)])
    for seq in (a, b):
        books.stop(seq)
        books.policy.ended(seq)
    assert books.arrive("a").place[0] == 0
    assert books.policy.num_first == 0
    books.arrive("b")
    assert books.policy.num_first == fair_share.NUM_ASKED


def batcher_of(max_batch_size):
    cache = KVCacheManager(400, 4, prefix_caching=False)
    return DynamicBatcher(cache, max_batch_size, 64, policy="fair", prefill_share=math.inf)


def ask(batcher, tenant, count=1, num_tokens=4):
    for _ in range(count):
        name = f"{tenant} {batcher.num_arrivals}"
        batcher.add(
            make_sequence(name, num_tokens, max_tokens=50, scheduling=SchedulingParams(0.0, tenant=tenant.encode()))
        )


def test_a_step_asks_of_a_bounded_number_whether_they_go_first(monkeypatch):
    batcher, asked = batcher_of(2), []
    ask(batcher, "a")
    ask(batcher, "b")
    step(batcher)
    ask(batcher, "a", 20)
    monkeypatch.setattr(batcher._policy, "goes_first", asked.append)
    assert batcher.schedule(0.0).num_decodes == 2
    assert len(asked) == fair_share.NUM_ASKED


def test_an_urgent_step_is_not_paced(monkeypatch):
    monkeypatch.setattr(fair_share, "PACE", 0.0)
    batcher = batcher_of(16)
    ask(batcher, "flood", 5)
    ask(batcher, "a")
    plan = batcher.schedule(0.0)
    batcher.update(plan, result_of(plan))
    for chunk in (0, 50):
        batcher._chunk_budget.observe(1, chunk, 0.01 + 0.001 * chunk)
    ask(batcher, "a", num_tokens=60)
    plan = batcher.schedule(0.0)
    assert [item.num_tokens for item in plan.scheduled] == [1, 60], "those of `a` alone"
    batcher.abort("a 6")
    ask(batcher, "flood", num_tokens=60)
    for _ in range(2):  # as it starts and as it goes on
        plan = batcher.schedule(0.0)
        assert 1 < plan.scheduled[-1].num_tokens < 20
        batcher.update(plan, result_of(plan))


def test_an_idle_key_saves_nothing_up():
    policy = FairShare(8, ChunkBudget(64))
    for _ in range(10):
        seq = of("a", tenant=b"busy")
        seq.place = (policy.place(seq, 4, 0), 0)
        policy.started(seq, in_turn=True)
        policy.stopped(seq)
    late = policy.place(of("b", tenant=b"late"), 4, 0)
    assert late == 180  # where the busy key's last one started, not 0


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


def test_tenants_that_come_and_go_are_forgotten_except_those_ahead(monkeypatch):
    monkeypatch.setattr(fair_share, "_MANY", 4)
    books = Books()
    ahead = books.arrive("ahead", max_tokens=100_000)
    _, (greedy,) = books.run("stays"), books.run("greedy", max_tokens=100_000)
    books.policy.computed([(greedy, BURST + 500)])
    books.stop(greedy)
    sizes = []
    for i in range(100):
        (stays,), (seq,) = (
            books.run("stays"),
            books.run(str(i)),
        )  # whose end is 16 before the next one's place
        books.policy.computed([(stays, 4), (seq, 4)])
        books.stop(seq)
        books.policy.ended(seq)
        sizes.append((len(books.policy._ends), len(books.policy._served)))
    assert max(ends for ends, _ in sizes) == books.policy._many == 8, (
        "twice those ahead: `ahead`, `greedy`, `stays` and the last"
    )
    assert max(served for _, served in sizes) <= 8
    assert books.arrive("ahead").place[0] == ahead.place[0] + 100_004
    assert not books.policy.goes_first(books.arrive("greedy"))
    books.run("greedy")
    assert not books.policy.goes_first(books.arrive("greedy")), "a place in the batch changes nothing"


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

"""The books of fair shares, rule by rule; what they bring together is in tests/benchmarks/test_simulate.py."""

import math

import pytest

from engine import fair_share
from engine.chunk_budget import ChunkBudget
from engine.dynamic_batcher import DynamicBatcher
from engine.fair_share import BURST, FairShare
from engine.kv_cache_manager import KVCacheManager
from engine.protocol import Terms
from engine.sequence import SequenceStatus
from tests.engine.sequences import make_sequence
from tests.engine.test_dynamic_batcher import result_of, step


class Books:
    """A policy for a small batch, and the calls that the batcher makes."""

    def __init__(self, max_batch_size=8):
        self.budget = ChunkBudget(64)
        self.policy = FairShare(max_batch_size, self.budget)
        self.running = []

    def arrive(self, tenant, num_tokens=4, max_tokens=16, weight=1.0):
        terms = Terms(0.0, tenant=tenant.encode(), weight=weight)
        seq = make_sequence(num_prompt_tokens=num_tokens, max_tokens=max_tokens, terms=terms)
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
    assert books.policy.num_first == fair_share.LOOK_AHEAD


def batcher_of(max_batch_size):
    cache = KVCacheManager(400, 4, prefix_caching=False)
    return DynamicBatcher(cache, max_batch_size, 64, policy="fair", prefill_share=math.inf)


def add(batcher, tenant, count=1, num_tokens=4):
    for _ in range(count):
        name = f"{tenant} {batcher.num_arrivals}"
        batcher.add(make_sequence(name, num_tokens, max_tokens=50, terms=Terms(0.0, tenant=tenant.encode())))


def test_a_step_asks_of_a_bounded_number_whether_they_go_first(monkeypatch):
    batcher, asked = batcher_of(2), []
    add(batcher, "a")
    add(batcher, "b")
    step(batcher)
    add(batcher, "a", 20)
    monkeypatch.setattr(batcher._policy, "goes_first", asked.append)
    assert batcher.schedule(0.0).num_decodes == 2
    assert len(asked) == fair_share.LOOK_AHEAD


def test_an_urgent_step_is_not_paced(monkeypatch):
    monkeypatch.setattr(fair_share, "PACE", 0.0)
    batcher = batcher_of(16)
    add(batcher, "flood", 5)
    add(batcher, "a")
    plan = batcher.schedule(0.0)
    batcher.update(plan, result_of(plan))
    for chunk in (0, 50):
        batcher._chunk_budget.observe(1, chunk, 0.01 + 0.001 * chunk)
    add(batcher, "a", num_tokens=60)
    plan = batcher.schedule(0.0)
    assert [item.num_tokens for item in plan.scheduled] == [1, 60], "those of `a` alone"
    batcher.abort("a 6")
    add(batcher, "flood", num_tokens=60)
    assert 1 < batcher.schedule(0.0).scheduled[-1].num_tokens < 20

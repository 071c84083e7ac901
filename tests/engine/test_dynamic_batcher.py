"""Steps, from what waits to what ends: order, packing, preemption, every end, and stats."""

import pytest

from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import AGING
from engine.protocol import PoolingParams, TokenLogprobs
from engine.sequence import SequenceStatus
from engine.step import StepResult
from tests.support.sequences import make_sequence, table_of
from tests.support.stepping import add, make_batcher, of, result_of, shares, step


def test_the_shortest_waiting_prompt_starts_first():
    batcher = make_batcher(tokens=100)
    add(batcher, make_sequence("long", 70), make_sequence("short", 3), make_sequence("middle", 20))
    assert shares(batcher, batcher.schedule(0)) == [("short", 0, 3), ("middle", 0, 20), ("long", 0, 70)]


def test_equal_prompts_start_in_order_of_arrival():
    batcher = make_batcher()
    add(batcher, *(make_sequence(name, 4) for name in "abc"))
    assert shares(batcher, batcher.schedule(0)) == [("a", 0, 4), ("b", 0, 4), ("c", 0, 4)]


def test_a_step_packs_decodes_then_begun_prompts_then_waiting_ones():
    batcher = make_batcher(tokens=10)
    add(batcher, make_sequence("decoding", 2))
    step(batcher)
    add(batcher, make_sequence("begun", 15))
    plan = batcher.schedule(0)
    assert shares(batcher, plan) == [("decoding", 2, 1), ("begun", 0, 9)]
    assert [item.sample is not None for item in plan.scheduled] == [True, False]
    batcher.update(plan, result_of(plan))
    add(batcher, make_sequence("waiting", 5))
    plan = batcher.schedule(0)
    assert shares(batcher, plan) == [("decoding", 3, 1), ("begun", 9, 6), ("waiting", 0, 3)]
    assert [item.sample is not None for item in plan.scheduled] == [True, True, False]
    assert plan.num_tokens == 10


def test_max_batch_size_bounds_the_running():
    batcher = make_batcher(batch=2, tokens=64)
    add(batcher, *(make_sequence(name, 4) for name in "abc"))
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))] == ["a", "b"]
    assert batcher.stats().num_waiting == 1


def test_a_chunk_of_one_token_is_not_mistaken_for_a_decode():
    batcher = make_batcher(batch=2, tokens=2)
    add(batcher, make_sequence("p", 3))
    assert step(batcher) == []
    assert [output.token_ids for output in step(batcher)] == [[5]]


def test_a_sequence_starts_only_if_each_running_one_can_still_grow():
    batcher = make_batcher(num_blocks=3, block_size=4)
    add(batcher, make_sequence("a", 4, max_tokens=4))
    step(batcher)
    add(batcher, make_sequence("b", 4, max_tokens=4))
    assert shares(batcher, batcher.schedule(0)) == [("a", 4, 1)]  # 1 block is free, but it would leave none for a
    assert batcher.stats().num_waiting == 1


def test_the_newest_running_sequence_is_preempted_and_computed_anew():
    batcher = make_batcher(num_blocks=4, block_size=2)
    old, new = make_sequence("old", 2, max_tokens=6), make_sequence("new", 2, max_tokens=6)
    add(batcher, old, new)
    for _ in range(3):
        step(batcher)
    assert batcher.kv_cache.num_free_blocks == 0
    assert shares(batcher, batcher.schedule(0)) == [("old", 4, 1)]
    assert (new.status, table_of(batcher.kv_cache, new), new.num_computed_tokens) == (SequenceStatus.WAITING, [], 0)
    assert new.token_ids == [0, 0, 5, 5, 5]
    assert batcher.stats().num_preemptions == 1


def test_a_preempted_sequence_comes_back_before_later_arrivals():
    batcher = make_batcher(num_blocks=4, block_size=2)
    old = make_sequence("old", 2, max_tokens=6)
    add(batcher, old, make_sequence("new", 2, max_tokens=6))
    for _ in range(4):
        step(batcher)
    add(batcher, make_sequence("later", 1, max_tokens=1))
    while old.status is SequenceStatus.RUNNING:
        plan = batcher.schedule(0)
        assert [name for name, _, _ in shares(batcher, plan)] == ["old"]
        batcher.update(plan, result_of(plan))
    assert shares(batcher, batcher.schedule(0)) == [("new", 0, 5)]


def test_each_end_has_its_reason_and_frees_the_blocks():
    batcher = make_batcher()
    add(batcher, make_sequence("length", 3, max_tokens=2))
    assert [output.finish_reason for output in step(batcher) + step(batcher)] == [None, "length"]
    batcher.check_idle()

    add(batcher, make_sequence("stop", 3, stop_token_ids=(5,)))
    (output,) = step(batcher)
    assert (output.finish_reason, output.stop_token_id, output.token_ids) == ("stop", 5, [5])
    batcher.check_idle()

    seq = make_sequence("error", 3)
    add(batcher, seq)
    (output,) = step(batcher, token_id=None)
    assert (output.finish_reason, output.token_ids, seq.finish_reason) == ("error", [], "error")
    batcher.check_idle()

    add(batcher, make_sequence("nothing", 3, max_tokens=0))
    (output,) = step(batcher)
    assert (output.finish_reason, output.token_ids) == ("length", [])
    batcher.check_idle()


def test_a_stop_token_before_min_tokens_does_not_end_the_sequence():
    batcher = make_batcher()
    add(batcher, make_sequence("s", 1, stop_token_ids=(5,), min_tokens=3))
    assert [step(batcher)[0].finish_reason for _ in range(3)] == [None, None, "stop"]


def test_the_stop_token_wins_over_the_length():
    batcher = make_batcher()
    add(batcher, make_sequence("s", 1, stop_token_ids=(5,), max_tokens=1))
    assert step(batcher)[0].finish_reason == "stop"


def test_prompt_logprobs_come_once_gathered_over_chunks():
    batcher = make_batcher(batch=1, tokens=2)
    add(batcher, make_sequence("s", 3, prompt_logprobs=0))
    reports = [TokenLogprobs(-1.0, [], []), TokenLogprobs(-2.0, [], [])]
    plan = batcher.schedule(0)
    assert batcher.update(plan, StepResult([], [reports])) == []
    outputs = step(batcher) + step(batcher)
    assert [output.prompt_logprobs for output in outputs] == [reports, None]


def test_queue_time_is_reported_once_from_arrival_to_first_step():
    batcher = make_batcher()
    add(batcher, make_sequence("s", 1))
    assert [output.queue_time for output in step(batcher, now=2.5) + step(batcher, now=9.0)] == [2.5, None]


@pytest.mark.parametrize("index", [None, 1])
def test_abort_ends_all_of_a_request_or_one_sequence(index):
    batcher = make_batcher(batch=2)
    seqs = [make_sequence("r", 4, index=i) for i in range(3)]
    add(batcher, *seqs, make_sequence("other", 40))
    step(batcher)
    batcher.abort("r", index)
    ended = [seq.index for seq in seqs if seq.finish_reason == "abort"]
    assert ended == ([0, 1, 2] if index is None else [1])
    assert all(table_of(batcher.kv_cache, seq) == [] for seq in seqs if seq.index in ended)
    batcher.abort("r", index)
    batcher.abort("other")
    batcher.abort("r")
    batcher.check_idle()


def test_aborting_what_is_unknown_changes_nothing():
    batcher = make_batcher()
    add(batcher, make_sequence("s", 2))
    batcher.abort("other")
    batcher.abort("s", 7)
    assert batcher.stats().num_waiting == 1


def test_check_idle_notices_a_live_sequence():
    batcher = make_batcher()
    add(batcher, make_sequence("s", 2))
    for _ in range(2):  # while it waits, and while it runs
        with pytest.raises(AssertionError, match=r"^$"):
            batcher.check_idle()
        step(batcher)


def test_an_idle_batcher_plans_nothing():
    assert make_batcher().schedule(0).scheduled == []


@pytest.mark.parametrize("length", [18, 160, 1000])
def test_a_long_prompt_is_passed_by_a_bounded_number_of_later_arrivals(length):
    batcher = make_batcher(num_blocks=1000, batch=1, tokens=2000)
    long = make_sequence("long", length, max_tokens=1)
    add(batcher, long)
    passed = 0
    while True:  # however many short ones arrive, each before the one that runs has ended
        add(
            batcher, make_sequence(f"short {passed}", 1, max_tokens=1), make_sequence(f"more {passed}", 2, max_tokens=1)
        )
        step(batcher)
        if long.status is SequenceStatus.FINISHED:
            break
        passed += 1
    assert 0 < passed <= length / AGING
    assert passed >= length // AGING - 1, "short prompts should pass up to the bound"


def test_a_cached_prefix_is_not_computed_again_and_does_not_count_as_length():
    batcher = DynamicBatcher(KVCacheManager(100, 4), 8, 64)
    prefix = list(range(20))
    add(batcher, make_sequence("first", prompt=[*prefix, 1], max_tokens=1))
    (output,) = step(batcher)
    assert output.num_cached_tokens == 0
    add(batcher, make_sequence("long", prompt=[*prefix, 2, 3]), make_sequence("short", prompt=[7, 8, 9]))
    plan = batcher.schedule(0)
    assert shares(batcher, plan) == [("long", 20, 2), ("short", 0, 3)]
    outputs = batcher.update(plan, result_of(plan))
    assert [output.num_cached_tokens for output in outputs] == [20, 0]
    assert (batcher.stats().num_prompt_tokens, batcher.stats().num_cached_tokens) == (46, 20)


def test_what_a_broken_sequence_computed_is_not_found_again():
    batcher = DynamicBatcher(KVCacheManager(100, 4), 4, 4)
    add(batcher, make_sequence("broken", prompt=list(range(10))))
    while batcher.has_work:
        step(batcher, token_id=None)
    add(batcher, make_sequence("next", prompt=list(range(10))))
    assert shares(batcher, batcher.schedule(0)) == [("next", 0, 4)]


def test_packing_adds_up_the_filled_part_of_steps_that_had_room_for_what_waits():
    batcher = make_batcher(num_blocks=3, batch=2, tokens=64)
    for name, packing in (("a", 1.0), ("does not fit", 1.0 + 1 / 64)):
        add(batcher, make_sequence(name, 4, max_tokens=4))
        step(batcher)
        assert batcher.stats().packing == packing
    for full in (make_batcher(batch=1, tokens=64), make_batcher(batch=2, tokens=4)):
        add(full, make_sequence("a", 8), make_sequence("waits", 8))
        step(full)
        assert (full.stats().num_waiting, full.stats().packing) == (1, 1.0)


def test_what_could_never_run_is_not_taken_in():
    with pytest.raises(AssertionError, match=r"^can never fit$"):
        add(make_batcher(num_blocks=2, block_size=4), make_sequence("s", 4, max_tokens=5))
    with pytest.raises(AssertionError, match=r"^every running sequence must be able to advance in each step$"):
        make_batcher(batch=3, tokens=2)


class Anything:
    """A matcher that allows all tokens, and ends the text at the one that is named."""

    mask = b"\xff" * 8

    def __init__(self, last=None):
        self.last = last

    def accept(self, token_id):
        return "stop" if token_id == self.last else None


def compiling(name, **options):
    seq = of(name, **options)
    seq.status = SequenceStatus.COMPILING
    return seq


def test_a_sequence_whose_grammar_is_compiled_is_live_but_takes_no_steps_until_it_is_ready():
    batcher = make_batcher()
    seq = compiling("a")
    add(batcher, seq)
    assert (batcher.has_work, batcher.can_step) == (True, False)
    assert batcher.schedule(0.0).scheduled == []
    assert batcher.ready(seq, Anything(last=5)) == []
    assert batcher.can_step
    (item,) = batcher.schedule(0.0).scheduled
    assert item.sample.mask == Anything.mask


def test_it_keeps_its_place_among_those_that_came_later():
    batcher = make_batcher(batch=1)
    early, late = compiling("early"), of("late")
    add(batcher, early, late)
    batcher.ready(early, Anything())
    assert shares(batcher, batcher.schedule(0.0)) == [("early", 0, 4)]


def test_it_ends_where_its_grammar_does_and_its_matcher_goes_with_it():
    batcher = make_batcher()
    seq = compiling("a")
    add(batcher, seq)
    batcher.ready(seq, Anything(last=5))
    (output,) = step(batcher, token_id=5)
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([5], "stop", None)
    assert seq.matcher is None
    batcher.check_idle()


def test_while_it_is_compiled_it_can_be_aborted_be_late_and_turn_out_bad():
    batcher = make_batcher()
    aborted, late, bad = compiling("aborted"), compiling("late", deadline=1.0), compiling("bad")
    add(batcher, aborted, late, bad)
    batcher.abort("aborted")
    assert [output.finish_reason for output in batcher.expire(2.0)] == ["timeout"]
    assert [output.finish_reason for output in batcher.ready(bad, None)] == ["error"]
    for seq in (aborted, late, bad):
        assert batcher.ready(seq, Anything()) == [], "it has ended"
    assert not batcher.has_work
    batcher.check_idle()


@pytest.mark.parametrize(("pooling", "expected"), [(None, [500, 495]), (PoolingParams(task="embed"), [100, 200])])
def test_prompts_that_end_with_values_take_a_share_of_the_streams_time_together(pooling, expected):
    batcher = DynamicBatcher(KVCacheManager(2000, 4, prefix_caching=False), 64, 501, prefill_share=1.0)
    add(batcher, make_sequence("stream", 2, max_tokens=500))
    step(batcher)
    for _ in range(16):  # a decode takes 0.1 s, and so do 100 prompt tokens
        batcher._chunk_budget.observe(1, 0, 0.1)
        batcher._chunk_budget.observe(1, 100, 0.2)
    add(batcher, *(make_sequence(str(i), 90, pooling=pooling) for i in range(20)))
    for num_tokens in expected:  # then those that run and those that start have a share each
        plan = batcher.schedule(0)
        assert plan.num_prompt_tokens == pytest.approx(num_tokens, abs=10)
        result = result_of(plan)
        result.pooled.update({item.sequence_id: bytes(8) for item in plan.scheduled if item.pool is not None})
        batcher.update(plan, result)

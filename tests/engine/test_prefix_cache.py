"""Blocks that are found again, evicted, forgotten or awaited."""

import pytest

from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.protocol import SchedulingParams
from engine.waiting_queue import MAX_PASSED
from tests.support.sequences import compute, make_sequence, start, table_of, try_start
from tests.support.stepping import add, result_of


def test_a_prompt_that_begins_like_an_earlier_one_takes_its_full_blocks():
    manager = KVCacheManager(10, 4)
    first = start(manager, range(10))
    compute(manager, first)
    second = start(manager, [*range(8), 77, 78])
    assert second.num_computed_tokens == 8
    assert table_of(manager, second)[:2] == table_of(manager, first)[:2]
    assert table_of(manager, second)[2] != table_of(manager, first)[2]
    assert not manager.is_in_flight(first, 0), "it is there already"
    assert manager.num_used_blocks == 4
    manager.check([first, second])


def test_the_last_token_is_always_left_to_compute():
    manager = KVCacheManager(10, 4)
    compute(manager, start(manager, range(8)))
    assert start(manager, range(8)).num_computed_tokens == 4
    assert start(manager, range(9)).num_computed_tokens == 8


def test_the_same_block_after_another_beginning_is_not_the_same():
    manager = KVCacheManager(10, 4)
    compute(manager, start(manager, [1, 1, 1, 1, 2, 2, 2, 2, 0]))
    assert start(manager, [3, 3, 3, 3, 2, 2, 2, 2, 0]).num_computed_tokens == 0
    assert start(manager, [2, 2, 2, 2, 0]).num_computed_tokens == 0


def test_equal_tokens_of_different_modalities_are_not_the_same():
    manager = KVCacheManager(20, 4)
    text, code, mixed = bytes(9), b"\1" * 9, bytes(5) + b"\1" * 4
    compute(manager, start(manager, range(9), modalities=code))
    assert start(manager, range(9)).num_computed_tokens == 0
    assert start(manager, range(9), modalities=b"\2" * 9).num_computed_tokens == 0
    assert start(manager, range(9), modalities=code).num_computed_tokens == 8
    compute(manager, start(manager, range(9)))
    assert start(manager, range(9), modalities=text).num_computed_tokens == 8, "text is text, said or not"
    assert start(manager, range(9), modalities=mixed).num_computed_tokens == 4


def test_a_block_in_flight_is_awaited_by_those_of_its_modalities_alone():
    manager = KVCacheManager(20, 4)
    start(manager, range(9), modalities=b"\1" * 9)
    assert manager.is_in_flight(make_sequence(prompt=list(range(9)), modalities=b"\1" * 9), 0)
    assert not manager.is_in_flight(make_sequence(prompt=list(range(9))), 0)


def test_a_block_of_output_has_the_modality_of_the_prompts_last_token():
    manager = KVCacheManager(20, 4)
    seq = make_sequence(prompt=[1, 2], output=(3, 4, 5), modalities=b"\0\1")
    assert try_start(manager, seq, 0) == 0
    compute(manager, seq)
    assert start(manager, [1, 2, 3, 4, 9], modalities=b"\0\1\1\1\0").num_computed_tokens == 4
    assert start(manager, [1, 2, 3, 4, 9], modalities=b"\0\1\0\0\0").num_computed_tokens == 0


def test_blocks_that_are_not_computed_yet_are_not_found():
    manager = KVCacheManager(10, 4)
    start(manager, range(9))
    assert start(manager, range(9)).num_computed_tokens == 0


def test_released_blocks_count_as_free_and_are_found_until_memory_is_wanted():
    manager = KVCacheManager(4, 4)
    seq = start(manager, range(9))
    compute(manager, seq)
    manager.release(seq)
    assert manager.num_free_blocks == 4
    manager.check([])
    again = start(manager, range(9))
    assert again.num_computed_tokens == 8
    manager.release(again)
    manager.release(start(manager, range(100, 116)))  # takes all four
    assert start(manager, range(9)).num_computed_tokens == 0
    assert manager.num_used_blocks == 3


def test_the_block_evictable_the_longest_goes_first_and_the_end_of_a_prefix_before_its_beginning():
    manager = KVCacheManager(4, 2)
    old, new = start(manager, [1, 2, 3, 4]), start(manager, [5, 6, 7, 8])
    compute(manager, old)
    compute(manager, new)
    manager.release(old)
    manager.release(new)
    start(manager, [9])
    assert manager.find_prefix(make_sequence(prompt=[1, 2, 3, 4, 0])).num_blocks == 1
    assert manager.find_prefix(make_sequence(prompt=[5, 6, 7, 8, 0])).num_blocks == 2


def test_reviving_cached_blocks_uses_free_ones_up():
    manager = KVCacheManager(3, 2)
    seq = start(manager, [1, 2, 3, 4, 5])
    compute(manager, seq)
    manager.release(seq)
    other = make_sequence(prompt=[1, 2, 3, 4, 5])
    assert try_start(manager, other, 1) is None
    assert try_start(manager, other, 0) == 4


def test_what_a_broken_sequence_computed_is_forgotten():
    manager = KVCacheManager(10, 4)
    seq = start(manager, range(9))
    compute(manager, seq)
    manager.release(seq, forget=True)
    manager.check([])
    assert start(manager, range(9)).num_computed_tokens == 0


def test_prompts_that_want_all_their_logprobs_are_computed_whole():
    manager = KVCacheManager(10, 4)
    compute(manager, start(manager, range(9)))
    assert start(manager, range(9), prompt_logprobs=0).num_computed_tokens == 0


def test_without_prefix_caching_nothing_is_found():
    manager = KVCacheManager(10, 4, prefix_caching=False)
    compute(manager, seq := start(manager, range(9)))
    assert start(manager, range(9)).num_computed_tokens == 0
    manager.release(seq)
    assert not manager._pool.prefix_cache.evictable


def test_a_block_that_a_running_sequence_is_about_to_fill_is_awaited():
    manager = KVCacheManager(20, 4)
    first = start(manager, range(12))
    first.num_computed_tokens = 4  # as after a first chunk
    manager.computed(first, 0)
    second = make_sequence(prompt=[*range(8), 99])
    assert manager.find_prefix(second).num_blocks == 1
    assert manager.is_in_flight(second, manager.find_prefix(second).num_blocks)
    other = make_sequence(prompt=[*range(4), 99, 99, 99, 99, 99])
    assert not manager.is_in_flight(other, 1)
    before, first.num_computed_tokens = 4, 8
    manager.computed(first, before)
    assert not manager.is_in_flight(second, manager.find_prefix(second).num_blocks)
    third = make_sequence(prompt=[*range(12), 99])
    assert manager.is_in_flight(third, manager.find_prefix(third).num_blocks)
    manager.release(first)  # aborted: nobody is computing it any more
    assert not manager.is_in_flight(third, manager.find_prefix(third).num_blocks)
    manager.check([second, third, other])


def test_the_last_block_is_not_awaited_as_it_is_not_taken():
    manager = KVCacheManager(20, 4)
    start(manager, range(8))
    seq = make_sequence(prompt=range(8))
    seq.token_ids = list(range(8))
    assert manager.is_in_flight(seq, 0)
    assert not manager.is_in_flight(make_sequence(prompt=list(range(4))), 0)


def test_tenants_do_not_find_each_other_s_blocks():
    manager = KVCacheManager(20, 4)
    tenants = (b"", b"a", b"b")
    seqs = {
        tenant: make_sequence(prompt=list(range(9)), scheduling=SchedulingParams(0.0, tenant=tenant))
        for tenant in tenants
    }
    for seq in seqs.values():
        assert manager.find_prefix(seq).num_blocks == 0
        assert not manager.is_in_flight(seq, 0)
        assert try_start(manager, seq, 0) == 0
        compute(manager, seq)
    again = make_sequence(prompt=list(range(9)), scheduling=SchedulingParams(0.0, tenant=b"a"))
    assert [block.block_id for block in manager.find_prefix(again).blocks[0].values()] == table_of(manager, seqs[b"a"])[
        :2
    ]


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


@pytest.mark.parametrize("num_passed", [MAX_PASSED - 1, MAX_PASSED])
def test_who_was_passed_as_often_as_may_be_waits_for_no_prefix(num_passed):
    batcher = DynamicBatcher(KVCacheManager(100, 4), 8, 64)
    first, second = (make_sequence("r", prompt=list(range(9)), index=i) for i in range(2))
    second.num_passed = num_passed
    add(batcher, first, second)
    assert len(batcher.schedule(0).scheduled) == 1 + (num_passed == MAX_PASSED)

"""Blocks: who holds them, who may find them again, and that none is lost."""

import random

import pytest

from engine.kv_cache_manager import KVCacheManager
from engine.protocol import Terms
from tests.engine.sequences import make_sequence, table_of


def try_start(manager, seq, num_spare):
    """Tokens that the cache had; None if `seq` did not start."""
    prefix = manager.find_prefix(seq)
    return len(prefix) * manager.block_size if manager.start(seq, prefix, num_spare) else None


def start(manager, prompt, *, num_spare=0, **sampling):
    seq = make_sequence(prompt=list(prompt), **sampling)
    seq.num_computed_tokens = try_start(manager, seq, num_spare)
    return seq


def compute(manager, seq):
    """As the batcher does after a step that computed all of a sequence."""
    before, seq.num_computed_tokens = seq.num_computed_tokens, seq.num_tokens
    manager.cache_full_blocks(seq, before)


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_blocks_are_counted_rounding_up(num_tokens, num_blocks):
    assert KVCacheManager(4, 16).num_blocks_for(num_tokens) == num_blocks


def test_a_sequence_starts_with_the_blocks_of_its_tokens_and_grows_by_one_when_it_crosses():
    manager = KVCacheManager(8, 4)
    seq = start(manager, range(9))
    assert (manager.num_used_blocks, manager.num_free_blocks) == (3, 5)
    first = list(table_of(manager, seq))
    for _ in range(3):
        seq.token_ids.append(0)
        assert manager.grow(seq)
    assert table_of(manager, seq) == first
    seq.token_ids.append(0)
    assert manager.grow(seq)
    assert table_of(manager, seq)[:3] == first
    assert len(set(table_of(manager, seq))) == 4


def test_a_start_that_leaves_too_few_spare_blocks_changes_nothing():
    manager, seq = KVCacheManager(3, 2), make_sequence(prompt=[0, 1, 2])
    assert try_start(manager, seq, 2) is None
    assert (table_of(manager, seq), manager.num_free_blocks) == ([], 3)
    assert try_start(manager, seq, 1) == 0
    assert len(table_of(manager, seq)) == 2


def test_growing_beyond_the_pool_gives_nothing():
    manager = KVCacheManager(1, 2)
    seq = start(manager, [0, 1])
    seq.token_ids.append(2)
    assert not manager.grow(seq)
    assert len(table_of(manager, seq)) == 1


def test_a_prompt_that_begins_like_an_earlier_one_takes_its_full_blocks():
    manager = KVCacheManager(10, 4)
    first = start(manager, range(10))
    compute(manager, first)
    second = start(manager, [*range(8), 77, 78])
    assert second.num_computed_tokens == 8
    assert table_of(manager, second)[:2] == table_of(manager, first)[:2]
    assert table_of(manager, second)[2] != table_of(manager, first)[2]
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
    assert len(manager.find_prefix(make_sequence(prompt=[1, 2, 3, 4, 0]))) == 1
    assert len(manager.find_prefix(make_sequence(prompt=[5, 6, 7, 8, 0]))) == 2


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
    compute(manager, start(manager, range(9)))
    assert start(manager, range(9)).num_computed_tokens == 0


def test_check_notices_a_block_that_is_held_and_one_released_twice():
    manager = KVCacheManager(2, 1)
    seq = start(manager, [0])
    with pytest.raises(AssertionError, match="outlived"):
        manager.check([])
    manager._sequences[seq.sequence_id].table *= 2
    with pytest.raises(AssertionError, match="released twice"):
        manager.release(seq)


def test_random_use_never_loses_or_doubles_a_block():
    rng = random.Random(0)
    manager = KVCacheManager(20, 4)
    live = []
    hits = evictions = 0
    for _ in range(4000):
        action = rng.random()
        if action < 0.4:
            seq = make_sequence(prompt=[rng.randrange(2) for _ in range(rng.randint(1, 20))])
            found = try_start(manager, seq, rng.randrange(3))
            if found is None:
                manager.release(seq)
            else:
                hits += found
                seq.num_computed_tokens = found
                live.append(seq)
        elif action < 0.7 and live:
            seq = rng.choice(live)
            compute(manager, seq)
            seq.token_ids.append(rng.randrange(2))
            if not manager.grow(seq):
                seq.token_ids.pop()
        elif live:
            manager.release(live.pop(rng.randrange(len(live))), forget=rng.random() < 0.1)
        evictions += manager.num_free_blocks == len(manager._prefix_cache.evictable) > 0
        manager.check(live)
    assert hits > 500
    assert evictions > 100
    for seq in live:
        manager.release(seq)
    manager.check([])


def test_a_block_that_a_running_sequence_is_about_to_fill_is_awaited():
    manager = KVCacheManager(20, 4)
    first = start(manager, range(12))
    first.num_computed_tokens = 4  # as after a first chunk
    manager.cache_full_blocks(first, 0)
    second = make_sequence(prompt=[*range(8), 99])
    assert len(manager.find_prefix(second)) == 1
    assert manager.is_in_flight(second, len(manager.find_prefix(second)))
    other = make_sequence(prompt=[*range(4), 99, 99, 99, 99, 99])
    assert not manager.is_in_flight(other, 1)
    before, first.num_computed_tokens = 4, 8
    manager.cache_full_blocks(first, before)
    assert not manager.is_in_flight(second, len(manager.find_prefix(second)))
    third = make_sequence(prompt=[*range(12), 99])
    assert manager.is_in_flight(third, len(manager.find_prefix(third)))
    manager.release(first)  # aborted: nobody is computing it any more
    assert not manager.is_in_flight(third, len(manager.find_prefix(third)))
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
    seqs = {tenant: make_sequence(prompt=list(range(9)), terms=Terms(0.0, tenant=tenant)) for tenant in tenants}
    for seq in seqs.values():
        assert manager.find_prefix(seq) == []
        assert not manager.is_in_flight(seq, 0)
        assert try_start(manager, seq, 0) == 0
        compute(manager, seq)
    again = make_sequence(prompt=list(range(9)), terms=Terms(0.0, tenant=b"a"))
    assert [block.block_id for block in manager.find_prefix(again)] == table_of(manager, seqs[b"a"])[:2]

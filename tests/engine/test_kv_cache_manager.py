import random

import pytest

from engine.kv_cache_manager import KVCacheManager
from tests.engine.sequences import make_sequence


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_blocks_are_counted_rounding_up(num_tokens, num_blocks):
    assert KVCacheManager(4, 16).num_blocks_for(num_tokens) == num_blocks


def test_growing_gives_only_what_is_missing():
    manager, seq = KVCacheManager(8, 4), make_sequence()
    assert manager.num_missing_blocks(seq, 9) == 3
    assert manager.grow(seq, 9)
    first = list(seq.block_table)
    assert (manager.num_used_blocks, manager.num_free_blocks) == (3, 5)
    assert manager.grow(seq, 12)
    assert seq.block_table == first
    assert manager.grow(seq, 13)
    assert seq.block_table[:3] == first
    assert len(set(seq.block_table)) == 4
    assert manager.num_missing_blocks(seq, 1) == 0


def test_growing_beyond_the_pool_gives_nothing():
    manager, first, second = KVCacheManager(3, 2), make_sequence(), make_sequence()
    assert manager.grow(first, 4)
    assert not manager.grow(second, 4)
    assert second.block_table == []
    assert manager.num_free_blocks == 1
    assert manager.grow(second, 2)


def test_released_blocks_can_be_had_again():
    manager, seq = KVCacheManager(2, 1), make_sequence()
    assert manager.grow(seq, 2)
    manager.release(seq)
    assert seq.block_table == []
    manager.check_idle()
    assert manager.grow(seq, 2)


def test_check_idle_notices_a_block_that_is_held():
    manager, seq = KVCacheManager(2, 1), make_sequence()
    manager.grow(seq, 1)
    with pytest.raises(AssertionError, match="leaked"):
        manager.check_idle()


def test_a_block_released_twice_is_noticed():
    manager, seq = KVCacheManager(2, 1), make_sequence()
    manager.grow(seq, 1)
    seq.block_table *= 2
    with pytest.raises(AssertionError, match="released twice"):
        manager.release(seq)


def test_no_two_sequences_ever_hold_the_same_block():
    rng = random.Random(0)
    manager = KVCacheManager(20, 4)
    seqs = [make_sequence() for _ in range(6)]
    sizes = [0] * len(seqs)
    for _ in range(3000):
        i = rng.randrange(len(seqs))
        if rng.random() < 0.3:
            manager.release(seqs[i])
            sizes[i] = 0
        elif manager.grow(seqs[i], size := sizes[i] + rng.randrange(12)):
            sizes[i] = size
        held = [block for seq in seqs for block in seq.block_table]
        assert len(held) == len(set(held)) == manager.num_used_blocks == 20 - manager.num_free_blocks
        assert [len(seq.block_table) for seq in seqs] == [-(-size // 4) for size in sizes]
        assert set(held) <= set(range(20))
    for seq in seqs:
        manager.release(seq)
    manager.check_idle()

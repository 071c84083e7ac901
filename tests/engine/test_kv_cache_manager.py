"""Blocks: who holds them, and that none is lost."""

import random

import pytest

from engine.kv_cache_manager import KVCacheManager
from tests.support.sequences import compute, make_sequence, start, table_of, try_start


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
        assert manager.grow(seq) is not None
    assert table_of(manager, seq) == first
    seq.token_ids.append(0)
    assert manager.grow(seq) is not None
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
    assert manager.grow(seq) is None
    assert len(table_of(manager, seq)) == 1


def one_in_use_and_one_evictable():
    """Block 0 is held, block 1 is cached and block 2 is free."""
    manager = KVCacheManager(3, 1)
    seq, cached, plain = (start(manager, [token]) for token in (0, 1, 2))
    compute(manager, cached)
    manager.release(cached)
    manager.release(plain)
    manager.check([seq])
    return manager, seq


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda manager: setattr(manager._pool._blocks[0], "ref_count", 2), "reference counts are off"),
        (lambda manager: manager._pool._free.clear(), "blocks leaked or doubled"),
        (lambda manager: manager._pool._free.append(manager._pool._free[0]), "blocks leaked or doubled"),
        (lambda manager: manager._pool._free.append(manager._pool._blocks[0]), "blocks leaked or doubled"),
        (lambda manager: manager._pool.prefix_cache.evictable.clear(), "blocks leaked or doubled"),
        (lambda manager: setattr(manager._pool._blocks[2], "hash", b"some"), ""),
        (lambda manager: manager._pool.prefix_cache.blocks.clear(), ""),
        (lambda manager: manager._in_flight[False].add([b"some"]), "announced blocks are off"),
        (lambda manager: manager._in_flight[False]._counts.clear(), "announced blocks are off"),
    ],
)
def test_check_notices_damage(damage, message):
    manager, seq = one_in_use_and_one_evictable()
    damage(manager)
    with pytest.raises(AssertionError, match=f"^{message}$"):
        manager.check([seq])


def test_check_notices_a_block_that_is_held_and_one_released_twice():
    manager, seq = one_in_use_and_one_evictable()
    with pytest.raises(AssertionError, match=r"^a block table outlived its sequence$"):
        manager.check([])
    manager._sequences[seq.sequence_id].groups[0].ids *= 2
    with pytest.raises(AssertionError, match=r"^a block was released twice$"):
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
            if manager.grow(seq) is None:
                seq.token_ids.pop()
        elif live:
            manager.release(live.pop(rng.randrange(len(live))), forget=rng.random() < 0.1)
        evictions += manager.num_free_blocks == len(manager._pool.prefix_cache.evictable) > 0
        manager.check(live)
    assert hits > 500
    assert evictions > 100
    for seq in live:
        manager.release(seq)
    manager.check([])

"""What a group keeps of a sequence, and what a sequence needs of a pool because of that."""

import math

import pytest

from engine.cache_groups import group_layers
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.retention import Window, longest, most_held
from kernels.attention_pattern import FULL, BlockSparseAttention, LocalAttention
from tests.support.sequences import make_sequence, try_start
from tests.support.stepping import result_of, step

LOCAL = LocalAttention(256)
SPARSE = [BlockSparseAttention(64, 1, 2, 0, layer=layer) for layer in range(2)]
RANDOM = [BlockSparseAttention(64, 1, 2, 3, layer=layer) for layer in range(2)]


def windows(*patterns, block_size=16):
    return group_layers(patterns).windows(block_size)


def batcher_of(*patterns, num_blocks, tokens=512, batch=32):
    cache = KVCacheManager(num_blocks, 16, windows=windows(*patterns), max_batched_tokens=tokens)
    return DynamicBatcher(cache, batch, tokens, prefill_share=math.inf)


@pytest.mark.parametrize(
    ("patterns", "in_decode", "in_prompt"),
    [
        ([LOCAL] * 3, {16, 17}, (256 + 512) // 16 + 1),
        (SPARSE, {8, 9, 10, 11, 12}, 4 + (2 * 64 + 512) // 16),
    ],
)
def test_32k_tokens_hold_a_window_s_blocks_and_a_chunk_while_the_prompt_is_computed(patterns, in_decode, in_prompt):
    batcher = batcher_of(*patterns, num_blocks=in_prompt)
    batcher.add(seq := make_sequence(prompt=[7] * 32_000, max_tokens=768, ignore_eos=True))
    most = 0
    while seq.num_output_tokens == 0:
        plan = batcher.schedule(0.0)
        most = max(most, batcher.stats().num_used_blocks)
        batcher.update(plan, result_of(plan))
    assert in_prompt - 4 <= most <= in_prompt
    used = set()
    for _ in range(700):
        step(batcher)
        used.add(batcher.stats().num_used_blocks)
    assert used == in_decode
    while batcher.has_work:
        step(batcher)
    assert batcher.num_preemptions == 0
    batcher.check_idle()


def test_an_admission_counts_what_a_sequence_holds_at_once():
    """Three claims of 49 blocks fit where one prompt of full attention has 500; decoding, many more do."""
    batcher = batcher_of(LOCAL, num_blocks=150)
    for number in range(24):
        batcher.add(make_sequence(f"{number}", prompt=[number] * 8000, max_tokens=400, ignore_eos=True))
    most = 0
    while batcher.has_work:
        step(batcher)
        most = max(most, batcher.stats().num_running)
    assert most >= 5
    assert batcher.num_preemptions == 0


def test_a_prefix_that_others_hold_is_paid_as_well():
    """Else the holders' own blocks would not come back when they release it, and a prompt would lack one."""
    manager = KVCacheManager(9, 4, windows=windows(LocalAttention(8), block_size=4), max_batched_tokens=4)
    first = make_sequence(prompt=[1] * 40)
    assert try_start(manager, first, 0) == 0
    for start in range(0, 12, 4):
        manager.extend(first, start + 4)
        first.num_computed_tokens = start + 4
        manager.computed(first, start)
    assert (manager.num_used_blocks, manager.num_available_blocks) == (2, 9 - 4)
    second = make_sequence(prompt=[1] * 20)
    prefix = manager.find_prefix(second)
    assert (prefix.num_blocks, list(prefix.blocks[0])) == (3, [1, 2])
    assert manager.num_needed(second, prefix, 0) == 4
    assert manager.start(second, prefix, 0)
    assert (manager.num_used_blocks, manager.num_available_blocks) == (2, 9 - 8)
    manager.check([first, second])


def test_a_table_tells_where_it_begins_and_what_is_released_in_the_middle():
    def table(*patterns):
        manager = KVCacheManager(40, 4, windows=windows(*patterns, block_size=4))
        seq = make_sequence(prompt=[1] * 40)
        assert try_start(manager, seq, 0) == 0
        manager.extend(seq, 40)
        seq.num_computed_tokens = 40
        manager.computed(seq, 0)
        return manager.grow(seq)

    [local] = table(LocalAttention(8))
    assert (local.first, len(local.ids)) == (8, 2)
    [sparse] = table(BlockSparseAttention(8, 1, 1, 0))
    assert sparse.first == 0
    assert [block >= 0 for block in sparse.ids] == [True] * 2 + [False] * 8


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_last_reader_of_a_block_is_the_last_query_that_sees_it_in_any_layer(num_layers):
    patterns = [BlockSparseAttention(8, 1, 2, 2, seed=5, layer=layer) for layer in range(num_layers)]
    (window,) = windows(*patterns, block_size=4)
    for last_unit in (3, 40, 17):
        while not window.learn(8 * last_unit + 5):
            assert list(window.needed(6, 8 * last_unit + 5)) == list(range(6)), "not known yet"
        for unit in range(1, last_unit):
            readers = [q for q in range(last_unit + 1) if any(unit in p.visible_blocks(q) for p in patterns)]
            assert window.last_reader(2 * unit, 8 * last_unit + 5) == max(readers, default=-1)


@pytest.mark.parametrize(
    ("patterns", "num_blocks", "limit", "expected"),
    [
        ([FULL], 10, 1000, 160),
        ([FULL], 100, 1000, 1000),
        ([FULL, LOCAL], 10, 1000, 80),
        ([LOCAL], 50, 1 << 20, 1 << 20),
        ([LOCAL], 48, 1 << 20, 48 * 16),
        ([FULL, LOCAL], 100 + 49, 1 << 20, 1600),
        (RANDOM, 10, 1000, 160),
        ([FULL, LOCAL], 1, 1000, 0),
    ],
)
def test_the_longest_sequence_is_one_that_the_pool_can_hold_alone(patterns, num_blocks, limit, expected):
    assert longest(windows(*patterns), 16, num_blocks, 512, limit) == expected


def test_small_steps_need_small_claims():
    (window,) = windows(LOCAL)
    assert (
        most_held((window, window), 10_000, 16) == 2 * window.most_held(10_000, 16) < window.most_held(10_000, 512) * 2
    )
    assert window.most_held(10_000, 8192) == window.most_held(10_000, 512), "a step of many prompts is no one's chunk"
    assert window.most_held(3, 512) == 3


def test_blocks_that_are_no_part_of_a_sparse_block_are_refused():
    with pytest.raises(ValueError, match=r"^blocks of 24 are no part of sparse blocks of 64$"):
        windows(*SPARSE, block_size=24)


def test_a_window_of_one_position_keeps_what_is_being_written():
    window = Window(4, 1)
    assert [window.first_recent(position) for position in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
    assert list(window.needed(2, 100)) == []

import itertools

import pytest

from kernels.attention_pattern import FULL, BlockSparseAttention, LocalAttention

_WRAP = 2**64


def mix(key: int) -> int:
    """Splitmix64, in Python's whole numbers."""
    z = (key + 0x9E3779B97F4A7C15) % _WRAP
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % _WRAP
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) % _WRAP
    return z ^ z >> 31


def expected_blocks(pattern: BlockSparseAttention, b: int) -> list[int]:
    """The rule, block by block."""

    def key(c: int) -> int:
        return (pattern.seed * 2**48 + pattern.layer * 2**40 + b * 2**20 + c) % _WRAP

    candidates = [c for c in range(b + 1) if pattern.num_global <= c <= b - pattern.num_local]
    chosen = sorted(candidates, key=lambda c: (mix(key(c)), c))[: pattern.num_random]
    return [c for c in range(b + 1) if c < pattern.num_global or c > b - pattern.num_local or c in chosen]


def test_mix_is_splitmix64():
    assert mix(0) == 0xE220A8397B1DCDAF  # the first number of the published generator with seed 0


@pytest.mark.parametrize(("seed", "layer"), [(0, 0), (7, 26), (2**16 + 3, 300), (2**63, 1)])
@pytest.mark.parametrize(
    "counts",
    [c for c in itertools.product((0, 1, 2), (0, 1, 3), (0, 1, 3)) if any(c)],
    ids=lambda counts: "-".join(map(str, counts)),
)
def test_visible_blocks_are_those_of_the_rule(counts, seed, layer):
    pattern = BlockSparseAttention(16, *counts, seed, layer)
    for b in (*range(12), 63, 64, 200):
        assert list(pattern.visible_blocks(b)) == expected_blocks(pattern, b)


def test_rows_do_not_depend_on_the_order_in_which_they_are_asked_for():
    ascending, jumping = BlockSparseAttention(64, 1, 2, 3, 5, 2), BlockSparseAttention(64, 1, 2, 3, 5, 2)
    late = jumping.visible_blocks(130)
    early = jumping.visible_blocks(40)
    rows = [ascending.visible_blocks(b) for b in range(131)]
    assert (early, late) == (rows[40], rows[130])
    assert rows[130] == tuple(expected_blocks(ascending, 130))  # after the table has grown over it


def test_layers_and_seeds_choose_otherwise():
    rows = {
        BlockSparseAttention(64, 1, 2, 3, seed, layer).visible_blocks(500) for seed in range(4) for layer in range(4)
    }
    assert len(rows) == 16


@pytest.mark.parametrize(
    "pattern",
    [
        FULL,
        LocalAttention(1),
        LocalAttention(10),
        BlockSparseAttention(4, 1, 2, 3),
        BlockSparseAttention(4, 1, 0, 1),
        BlockSparseAttention(4, 0, 0, 2),
    ],
    ids=str,
)
def test_pairs_and_positions_are_counted(pattern):
    def visible(query: int) -> set[int]:
        match pattern:
            case LocalAttention(window):
                return {s for s in range(query + 1) if s > query - window}
            case BlockSparseAttention(block_size):
                blocks = expected_blocks(pattern, query // block_size)
                return {s for s in range(query + 1) if s // block_size in blocks}
            case _:
                return set(range(query + 1))

    for query_len, context_len in ((1, 1), (1, 90), (1, 61), (7, 7), (90, 90), (31, 90), (5, 12), (3, 64)):
        seen = [visible(query) for query in range(context_len - query_len, context_len)]
        assert pattern.num_pairs(query_len, context_len) == sum(map(len, seen))
        assert pattern.num_read(query_len, context_len) == len(set.union(*seen))


def test_equal_patterns_are_one_key():
    assert len({BlockSparseAttention(64, 1, 2, 3), BlockSparseAttention(64, 1, 2, 3), LocalAttention(5)}) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalAttention(0), "window"),
        (lambda: BlockSparseAttention(0, 1, 1, 1), "sparse block"),
        (lambda: BlockSparseAttention(16, 0, 0, 0), "see nothing"),
        (lambda: BlockSparseAttention(16, 2, -1, 1), "negative"),
    ],
)
def test_settings_with_which_queries_see_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

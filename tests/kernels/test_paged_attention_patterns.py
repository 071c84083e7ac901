"""Attention under patterns, over a cache in which every block that no query sees is NaN, and has no entry in tables."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

from kernels import native
from kernels.attention_pattern import FULL, AttentionPattern, BlockSparseAttention, LocalAttention
from kernels.kv_cache import Cache
from kernels.native.capture import Graph, MemoryPool
from kernels.paged_attention import AttentionBatch
from kernels.paged_attention.native import NativeAttention
from kernels.paged_attention.reference import ReferenceAttention, is_visible
from kernels.paged_attention.virtual_sequences import under_pattern
from tests.kernels.attention_cases import BACKENDS, BATCHES, NATIVE, Case, make_case
from tests.kernels.compare import DTYPES, assert_close, dtype_id, int8_cache, natives, randn

pytestmark = pytest.mark.usefixtures("fake_flash_attn")
PATTERNS = [
    *(LocalAttention(window) for window in (1, 7, 100, 256, 1100)),
    *(BlockSparseAttention(size, 1, 2, 3, seed=3, layer=1) for size in (16, 64)),
    BlockSparseAttention(48, 0, 1, 1, seed=1),
    BlockSparseAttention(16, 1, 0, 2, seed=2),  # a query may not see its own block
    BlockSparseAttention(128, 1, 9, 1),  # more than a span
]
WINDOW, SPARSE = PATTERNS[2], PATTERNS[6]
LENS = {"long": ((1, 1, 64, 20, 300), (1500, 1025, 2100, 1025, 700)), "short": BATCHES["everything"]}


def sees(pattern: AttentionPattern, query: int, position: int) -> bool:
    """The rule, for one pair."""
    match pattern:
        case LocalAttention(window):
            return query - window < position <= query
        case BlockSparseAttention(size):
            return position <= query and position // size in pattern.visible_blocks(query // size)
        case _:
            return position <= query


def hide(case: Case, pattern: AttentionPattern) -> Case:
    """The case without what no query sees: blocks are NaN, tables begin with the first visible block or have -1."""
    batch, size = case.batch, case.batch.block_size
    k_cache, v_cache = case.k_cache.clone(), case.v_cache.clone()
    tables, first_blocks = [], []
    for query_len, context_len, table in zip(batch.query_lens, batch.context_lens, batch.block_tables, strict=True):
        queries = range(context_len - query_len, context_len)
        seen = (
            torch.stack([is_visible(pattern, query, context_len) for query in queries]).any(0).nonzero()[:, 0] // size
        )
        kept = [block if number in seen else -1 for number, block in enumerate(table)]
        for number, block in enumerate(kept):
            if block < 0:
                k_cache[table[number]] = v_cache[table[number]] = float("nan")
        first_blocks.append(int(seen[0]))
        tables.append(kept[first_blocks[-1] :])
    batch = dataclasses.replace(batch, block_tables=tables, first_blocks=first_blocks)
    return dataclasses.replace(case, batch=batch, k_cache=k_cache, v_cache=v_cache)


@functools.cache
def make_hidden(name: str, pattern: AttentionPattern, dtype: torch.dtype, head_dim: int = 16) -> Case:
    return hide(make_case(*LENS[name], group=3, dtype=dtype, head_dim=head_dim), pattern)


@functools.cache
def expected(case: Case, pattern: AttentionPattern) -> torch.Tensor:
    return case.run(ReferenceAttention(), pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_reference_matches_torch_with_a_mask_of_the_rule(pattern):
    whole = make_case(*BATCHES["everything"], group=3)
    out, first = expected(make_hidden("short", pattern, torch.float32), pattern), 0
    for query_len, keys, values in zip(whole.batch.query_lens, whole.keys, whole.values, strict=True):
        q = whole.q[first : first + query_len].transpose(0, 1)
        k, v = (x.transpose(0, 1).repeat_interleave(3, 0) for x in (keys, values))
        queries = range(len(keys) - query_len, len(keys))
        mask = torch.tensor([[sees(pattern, query, position) for position in range(len(keys))] for query in queries])
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)
        torch.testing.assert_close(out[first : first + query_len], o, rtol=1e-5, atol=1e-5)
        first += query_len


@pytest.mark.parametrize("name", LENS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_pattern_matches_reference(backend, dtype, pattern, name):
    case = make_hidden(name, pattern, dtype)
    out = case.run(BACKENDS[backend](dtype), pattern)
    assert not out.isnan().any(), "it read what no query sees"
    assert_close(out, expected(case, pattern))


@functools.cache
def int8_case(pattern: AttentionPattern, dtype: torch.dtype, head_dim: int) -> tuple[Case, list[Cache], torch.Tensor]:
    case, reference = make_hidden("long", pattern, dtype, head_dim), ReferenceAttention()
    caches: list[Cache] = [int8_cache(cache, [head_dim]) for cache in (case.k_cache, case.v_cache)]
    return case, caches, reference.forward(case.q, *caches, reference.plan(case.batch, pattern), head_dim**-0.5)


@pytest.mark.parametrize("pattern", [WINDOW, SPARSE], ids=str)
@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flash"])
def test_a_cache_of_int8_matches_reference(backend, dtype, head_dim, pattern):
    (case, caches, expected), kernel = int8_case(pattern, dtype, head_dim), BACKENDS[backend](dtype)
    out = kernel.forward(case.q, *caches, kernel.plan(case.batch, pattern), head_dim**-0.5)
    assert not out.isnan().any(), "it read what no query sees"
    assert_close(out, expected)


@pytest.mark.parametrize("pattern", [WINDOW, SPARSE], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decoding_token_at_32k_matches_reference(backend, pattern):
    case = make_case((1, 1), (2**15, 2**15 - 777))
    case = hide(case, pattern)
    assert_close(case.run(BACKENDS[backend](torch.float32), pattern), expected(case, pattern))


PIECES = (1, 12, 64, 3, 130, 256, 1, 1, 97, 48, 200, 31, 260, 5, 1, 1, 1)  # queries of the chunks of a sequence


@pytest.mark.parametrize("is_int8", [False, True], ids=["floats", "int8"])
@pytest.mark.parametrize("head_dim", [16, 24], ids=["panels", "rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("isa", NATIVE)
def test_native_results_are_the_same_to_the_bit_in_chunks_and_decoded(isa, dtype, head_dim, is_int8):
    length = sum(PIECES)
    whole = make_case((1, length), (40, length), group=3, head_dim=head_dim, dtype=dtype)
    caches = whole.k_cache.nan_to_num(0), whole.v_cache.nan_to_num(0)  # in any layout
    if is_int8:
        caches = tuple(int8_cache(cache, [head_dim]) for cache in caches)
    kernel, (other, table) = natives(NativeAttention())[isa], whole.batch.block_tables
    for pattern in PATTERNS[::2] + PATTERNS[-1:]:
        out = kernel.forward(whole.q, *caches, kernel.plan(whole.batch, pattern), 0.2)
        end = 0
        for size in PIECES:
            start, end = end, end + size
            batch = AttentionBatch([1, size], [40, end], [other, table], 16, torch.device("cpu"))
            q = whole.q[[0, *range(1 + start, 1 + end)]]
            piece = kernel.forward(q, *caches, kernel.plan(batch, pattern), 0.2)
            assert torch.equal(piece[0], out[0])
            assert torch.equal(piece[1:], out[1 + start : 1 + end]), (pattern, start)


@pytest.mark.parametrize("backend", BACKENDS)
def test_patterns_that_hide_nothing_are_full_attention(backend):
    case, kernel = make_case(*BATCHES["everything"]), BACKENDS[backend](torch.float32)
    full = case.run(kernel)
    for pattern in (LocalAttention(300), BlockSparseAttention(64, 1, 4, 3), BlockSparseAttention(512, 0, 1, 0)):
        assert_close(case.run(kernel, pattern), full)


def test_a_virtual_sequence_has_the_blocks_that_the_queries_of_a_sparse_block_see():
    pattern = BlockSparseAttention(4, 1, 1, 0)
    batch = AttentionBatch([1, 5], [3, 11], [[9], [10, 11, 12, 13, 14, 15, 16]], 2, torch.device("cpu"))
    virtual = under_pattern(batch, pattern)
    assert virtual.query_lens == [1, 2, 3]
    assert virtual.context_lens == [3, 8, 7]
    assert virtual.block_tables == [[9], [10, 11, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sparse_block_must_be_made_of_whole_blocks_of_the_cache(backend):
    with pytest.raises(ValueError, match="whole blocks"):
        BACKENDS[backend](torch.float32).plan(make_case((1,), (40,)).batch, BlockSparseAttention(24, 1, 1, 1))


def test_captured_attention_takes_a_step_s_plan_whatever_its_pattern():
    attention, most = NativeAttention(), 12
    caches = [randn(8, 1, 16, 64, dtype=torch.bfloat16, seed=i) for i in (1, 2)]
    q = randn(most, 2, 64, dtype=torch.bfloat16)
    batch = AttentionBatch([1, 9], [5, 100], [[3], [1, 2, 4, 5, 6, 7, 0]], 16, torch.device("cpu"))
    own, graph = attention.plan(batch.only([0])), Graph(MemoryPool(), most)
    with graph.capture():
        out = attention.forward(q, *caches, own, 0.1)
    for pattern in (LocalAttention(20), BlockSparseAttention(16, 1, 1, 1), FULL):
        step = attention.plan(batch, pattern)
        assert step.is_capturable
        own.assign(step)
        graph.replay(10)
        assert torch.equal(out[:10], attention.forward(q[:10], *caches, step, 0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], [40], [[1, 2, 3]], 16, [0], 0), "positive"),
        (([1], [40], [[1, 2]], 16, [0], None), "shorter"),
        (([1], [40], [[1, -2, 3]], 16, [0], None), "negative"),
        (([1], [40], [[3]], 16, [2], 20), "begins behind"),
        (([1], [40], [[3]], 16, [2, 0], 20), "first_blocks"),
        (([2], [1], [[3]], 16), "at least one query"),
    ],
)
def test_plans_refuse_tables_that_lack_what_is_seen(arguments, message):
    native.library.paged_attention_plan([1], [40], [[1, 2, 3]], 16)
    native.library.paged_attention_plan([1], [40], [[3]], 16, [2], 8)
    with pytest.raises(ValueError, match=message):
        native.library.paged_attention_plan(*arguments)


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        ([[0, -1]], "no row"),
        ([[0, -1], [-1, -1]], "must see"),
        ([[0, -1], [1, 0]], "ascend"),
        ([[0, 1], [2, -1]], "ascend"),
    ],
)
def test_sparse_plans_refuse_blocks_that_are_no_rule_s(visible, message):
    batch = [1], [30], [[1, 2]], 16, [0], 16
    native.library.block_sparse_attention_plan(*batch, torch.tensor([[0, -1], [0, 1]], dtype=torch.int32).numpy())
    with pytest.raises(ValueError, match=message):
        native.library.block_sparse_attention_plan(*batch, torch.tensor(visible, dtype=torch.int32).numpy())

"""Attention under patterns, over a cache in which every block that no query sees is NaN, and has no entry in tables."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

from kernels.attention_pattern import AttentionPattern, BlockSparseAttention, LocalAttention
from kernels.paged_attention.reference import ReferenceAttention, is_visible
from tests.kernels.attention_cases import BACKENDS, BATCHES, NATIVE, Case, make_case
from tests.kernels.compare import DTYPES, assert_close, dtype_id

pytestmark = pytest.mark.usefixtures("fake_flash_attn")
PATTERNS = [
    *(LocalAttention(window) for window in (1, 7, 16, 100, 256, 300, 1100)),
    *(BlockSparseAttention(size, 1, 2, 3, seed=3, layer=1) for size in (16, 64)),
    BlockSparseAttention(16, 2, 1, 0),
    BlockSparseAttention(48, 0, 1, 1, seed=1),
    BlockSparseAttention(16, 1, 0, 2, seed=2),  # a query may not see its own block
    BlockSparseAttention(128, 1, 9, 1),  # more than a span
]
BATCH_NAMES = ("longer than a span of a split", "short chunks of long contexts", "everything")


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
    return hide(make_case(*BATCHES[name], group=3, dtype=dtype, head_dim=head_dim), pattern)


@functools.cache
def expected(case: Case, pattern: AttentionPattern) -> torch.Tensor:
    return case.run(ReferenceAttention(), pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_reference_matches_torch_with_a_mask_of_the_rule(pattern):
    whole = make_case(*BATCHES["everything"], group=3)
    out, first = expected(make_hidden("everything", pattern, torch.float32), pattern), 0
    for query_len, keys, values in zip(whole.batch.query_lens, whole.keys, whole.values, strict=True):
        q = whole.q[first : first + query_len].transpose(0, 1)
        k, v = (x.transpose(0, 1).repeat_interleave(3, 0) for x in (keys, values))
        queries = range(len(keys) - query_len, len(keys))
        mask = torch.tensor([[sees(pattern, query, position) for position in range(len(keys))] for query in queries])
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)
        torch.testing.assert_close(out[first : first + query_len], o, rtol=1e-5, atol=1e-5)
        first += query_len


@pytest.mark.parametrize("name", BATCH_NAMES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_pattern_matches_reference(backend, dtype, pattern, name):
    if backend in NATIVE and isinstance(pattern, LocalAttention):
        pytest.skip("not yet")
    case = make_hidden(name, pattern, dtype)
    out = case.run(BACKENDS[backend](dtype), pattern)
    assert not out.isnan().any(), "it read what no query sees"
    assert_close(out, expected(case, pattern))

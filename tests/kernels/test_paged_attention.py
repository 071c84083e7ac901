"""Attention against its reference, over a cache in which every slot that nobody may read is NaN."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

from kernels.packed_rows import PackedRow
from kernels.paged_attention import AttentionBatch
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.reference import ReferenceAttention
from tests.kernels.attention_cases import BACKENDS, BATCHES, NATIVE, Case, make_case
from tests.kernels.compare import DTYPES, LIBRARIES, assert_close, dtype_id, int8_cache, packed_cache

pytestmark = pytest.mark.usefixtures("fake_flash_attn")
SHAPES = [  # query heads a key head, head_dim, block_size
    *((3, 64, block_size) for block_size in (1, 3, 7, 16, 64)),
    *((1, 16, 16), (1, 24, 16), (8, 37, 16), (8, 64, 16), (4, 128, 16), (1, 192, 16), (2, 256, 16)),
]


@functools.cache
def expected(case: Case) -> torch.Tensor:
    return case.run(ReferenceAttention())


def check(backend: str, case: Case) -> None:
    out = case.run(BACKENDS[backend](case.q.dtype))
    assert not out.isnan().any(), "it read a slot that is not its own"
    assert_close(out, expected(case))


@pytest.mark.parametrize("lens", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kind_of_batch_matches_reference(backend, dtype, lens):
    check(backend, make_case(*lens, dtype=dtype))


@pytest.mark.parametrize(("group", "head_dim", "block_size"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_shape_of_head_and_block_matches_reference(backend, dtype, group, head_dim, block_size):
    lens = ((1, 1, 1, 9, 14), (3, 90, 22, 9, 37))
    check(backend, make_case(*lens, group=group, head_dim=head_dim, block_size=block_size, dtype=dtype))


@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("lens", [BATCHES["odd lengths"], BATCHES["longer than a span of a split"]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flash"])
def test_a_cache_of_int8_matches_reference(backend, dtype, lens, head_dim):
    case = make_case(*lens, group=3, head_dim=head_dim, dtype=dtype)
    caches = [int8_cache(cache, [head_dim]) for cache in (case.k_cache, case.v_cache)]
    if backend == "torch":  # it reads slots that nobody wrote, and leaves them to KVCachePool.clear
        caches = [cache._replace(scales=cache.scales.nan_to_num(0)) for cache in caches]
    out = check_quantized(backend, case, caches)
    torch.testing.assert_close(out, case.run(ReferenceAttention()), rtol=0.1, atol=0.03)  # near what was quantised


@pytest.mark.parametrize(
    ("head_dim", "batch"),
    [(16, "mixed"), (64, "odd lengths"), (64, "longer than a span of a split"), (80, "mixed"), (128, "everything")],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flash"])
def test_a_cache_of_packed_rows_matches_reference(backend, dtype, head_dim, batch):
    case = make_case(*BATCHES[batch], group=3, head_dim=head_dim, dtype=dtype)
    caches = [packed_cache(x, PackedRow(head_dim, bits)) for x, bits in ((case.k_cache, 5), (case.v_cache, 4))]
    if backend == "torch":
        caches = [cache._replace(scales=cache.scales.nan_to_num(0)) for cache in caches]
    out = check_quantized(backend, case, caches)
    error, whole = (out - expected(case)).float().square().mean(), expected(case).float().square().mean()
    assert error < 0.02 * whole


def check_quantized(backend, case, caches):
    reference, kernel, scale = ReferenceAttention(), BACKENDS[backend](case.q.dtype), case.q.shape[-1] ** -0.5
    out = kernel.forward(case.q, *caches, kernel.plan(case.batch), scale)
    assert not out.isnan().any(), "it read a slot that is not its own"
    assert_close(out, reference.forward(case.q, *caches, reference.plan(case.batch), scale))
    return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_key_head_for_many_query_heads(backend):
    check(backend, make_case((1, 11), (70, 40), group=9, num_kv_heads=1, block_size=7))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_is_nan_stays_nan_and_spoils_no_neighbour(backend, dtype):
    case = make_case((1, 1, 3), (5, 90, 70), dtype=dtype)
    q = case.q.clone()
    q[1] = float("nan")
    out = dataclasses.replace(case, q=q).run(BACKENDS[backend](dtype))
    assert out[1].isnan().all()
    others = [0, 2, 3, 4]
    assert_close(out[others], expected(case)[others])


@pytest.mark.parametrize("lens", BATCHES.values(), ids=BATCHES.keys())
def test_reference_matches_torch_sequence_by_sequence(lens):
    case = make_case(*lens, group=3)
    out, first = case.run(ReferenceAttention()), 0
    for query_len, keys, values in zip(lens[0], case.keys, case.values, strict=True):
        q = case.q[first : first + query_len].transpose(0, 1)
        k, v = (x.transpose(0, 1).repeat_interleave(3, 0) for x in (keys, values))
        mask = torch.ones(query_len, len(keys), dtype=torch.bool).tril(len(keys) - query_len)
        whole = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(out[first : first + query_len], whole.transpose(0, 1), rtol=1e-5, atol=1e-5)
        first += query_len


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("isa", NATIVE)
def test_native_results_are_the_same_to_the_bit_alone_in_a_batch_and_in_chunks(isa, dtype, threads):
    query_lens, context_lens = (1, 1, 40, 130, 100), (2600, 70, 40, 400, 2070)
    together = make_case(query_lens, context_lens, group=3, dtype=dtype)
    kernel = BACKENDS[isa](dtype)
    out, first = together.run(kernel), 0
    LIBRARIES[isa].set_threads(threads)
    try:
        for table, query_len, context_len in zip(together.batch.block_tables, query_lens, context_lens, strict=True):
            for start in range(0, query_len, chunk := 13):
                rows = slice(first + start, first + min(start + chunk, query_len))
                seen = context_len - query_len + start + (rows.stop - rows.start)
                batch = AttentionBatch([rows.stop - rows.start], [seen], [table], 16, torch.device("cpu"))
                alone = Case(batch, together.q[rows], together.k_cache, together.v_cache, [], [])
                assert torch.equal(out[rows], alone.run(kernel))
            first += query_len
    finally:
        LIBRARIES[isa].set_threads(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("isa", NATIVE)
def test_results_of_packed_rows_are_the_same_to_the_bit_alone_in_a_batch_and_in_chunks(isa, dtype):
    query_lens, context_lens = (1, 1, 30), (1300, 70, 1040)
    case = make_case(query_lens, context_lens, group=3, head_dim=64, dtype=dtype)
    kernel, first = BACKENDS[isa](dtype), 0
    caches = [packed_cache(x, PackedRow(64, bits)) for x, bits in ((case.k_cache, 5), (case.v_cache, 4))]
    out = kernel.forward(case.q, *caches, kernel.plan(case.batch), 0.1)
    for table, query_len, context_len in zip(case.batch.block_tables, query_lens, context_lens, strict=True):
        for start in range(0, query_len, 13):
            count = min(13, query_len - start)
            rows = slice(first + start, first + start + count)
            batch = AttentionBatch([count], [context_len - query_len + start + count], [table], 16, torch.device("cpu"))
            assert torch.equal(out[rows], kernel.forward(case.q[rows], *caches, kernel.plan(batch), 0.1))
        first += query_len


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_s_result_does_not_depend_on_its_neighbours(backend):
    query_lens, context_lens = BATCHES["everything"]
    together = make_case(query_lens, context_lens)
    kernel = BACKENDS[backend](torch.float32)
    out, first = together.run(kernel), 0
    for i, query_len in enumerate(query_lens):
        table = together.batch.block_tables[i]
        batch = AttentionBatch([query_len], [context_lens[i]], [table], 16, torch.device("cpu"))
        q = together.q[first : first + query_len]
        alone = Case(batch, q, together.k_cache, together.v_cache, [], [])
        assert_close(out[first : first + query_len], alone.run(kernel))
        first += query_len


def test_flash_plan_packs_positions_under_cumulative_lengths(fake_flash_attn):
    case = make_case((1, 4, 3), (20, 4, 9), block_size=7)
    case.run(FlashAttention())
    (call,) = fake_flash_attn
    assert call["cu_seqlens_q"].tolist() == [0, 1, 5, 8]
    assert call["cu_seqlens_k"].tolist() == [0, 20, 24, 33]
    assert {call["cu_seqlens_q"].dtype, call["cu_seqlens_k"].dtype} == {torch.int32}
    assert (call["max_seqlen_q"], call["max_seqlen_k"]) == (4, 20)
    assert call["causal"] is True
    assert call["window_size"] == (-1, -1)
    assert call["softmax_scale"] == 16**-0.5
    assert torch.equal(call["k"], torch.cat(case.keys))
    assert torch.equal(call["v"], torch.cat(case.values))


@pytest.mark.parametrize(
    ("query_lens", "num_decodes"), [([1, 1, 5, 1], 2), ([4, 1], 0), ([1, 1], 2), ([2], 0)], ids=str
)
def test_num_decodes_counts_single_queries_at_the_front(query_lens, num_decodes):
    batch = AttentionBatch(query_lens, query_lens, [[0]] * len(query_lens), 16, torch.device("cpu"))
    assert batch.num_decodes == num_decodes

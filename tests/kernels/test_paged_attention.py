"""Attention against its reference, over a cache in which every slot that nobody may read is NaN."""

import dataclasses
import functools
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kernels.kv_cache import Cache, Int8Cache
from kernels.paged_attention import AttentionBatch, PagedAttention
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.native import NativeAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch_ops import TorchAttention
from tests.kernels.compare import DTYPES, LIBRARIES, Layout, assert_close, dtype_id, int8_cache, natives, randn


class AttentionOfRows(NativeAttention):
    """Given caches in rows, as its reference is."""

    def forward(self, q: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: Any, scale: float) -> torch.Tensor:
        layout = Layout(q.dtype)
        return super().forward(q, layout.keys(k_cache), layout.values(v_cache), plan, scale)


NATIVE = {isa: lambda _, backend=backend: backend for isa, backend in natives(AttentionOfRows()).items()}
BACKENDS = {"torch": TorchAttention, "flash": lambda _: FlashAttention(), **NATIVE}
SHAPES = [  # query heads a key head, head_dim, block_size
    *((3, 64, block_size) for block_size in (1, 3, 7, 16, 64)),
    *((1, 16, 16), (1, 24, 16), (8, 37, 16), (8, 64, 16), (4, 128, 16), (1, 192, 16), (2, 256, 16)),
]
# (query_lens, context_lens); decoding sequences come first
BATCHES = {
    "one decode": ((1,), (1,)),
    "decodes": ((1, 1, 1, 1), (5, 16, 17, 33)),
    "decodes of very different lengths": ((1,) * 9, (1, 700, 3, 130, 64, 65, 700, 2, 260)),
    "one prefill": ((19,), (19,)),
    "prefills": ((5, 1, 40), (5, 1, 40)),
    "mixed": ((1, 1, 1, 23, 6), (40, 2, 111, 23, 6)),
    "chunks with context": ((7, 33, 2), (50, 65, 3)),
    "odd lengths": ((1, 15, 16, 17, 63, 64, 65), (1000, 15, 16, 273, 63, 64, 1065)),
    "longer than a span of a split": ((1, 1, 1, 1, 300), (1024, 1025, 2047, 2600, 300)),
    "short chunks of long contexts": ((3, 64, 1, 20, 8), (1030, 2100, 1500, 1025, 600)),
    "everything": ((1, 1, 1, 12, 1, 30, 3), (9, 300, 31, 12, 48, 75, 3)),
}


@dataclass(frozen=True, eq=False)
class Case:
    batch: AttentionBatch
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    keys: list[torch.Tensor]  # of each sequence, [context_len, K, D]
    values: list[torch.Tensor]

    def run(self, backend: PagedAttention) -> torch.Tensor:
        caches = self.k_cache.clone(), self.v_cache.clone()
        out = backend.forward(self.q, *caches, backend.plan(self.batch), self.q.shape[-1] ** -0.5)
        assert torch.equal(caches[0].nan_to_num(7), self.k_cache.nan_to_num(7)), "the cache was written"
        return out


@functools.cache
def make_case(
    query_lens: tuple[int, ...],
    context_lens: tuple[int, ...],
    *,
    num_kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Blocks lie scattered; foreign blocks, and blocks allocated ahead of the context, hold NaN."""
    num_blocks = [-(-n // block_size) for n in context_lens]
    ahead = [i % 3 for i in range(len(context_lens))]  # chunked prefill owns blocks that it has not reached
    total = sum(num_blocks) + sum(ahead) + 5
    ids = torch.randperm(total, generator=torch.Generator().manual_seed(1)).tolist()
    shape = (total, num_kv_heads, block_size, head_dim)
    caches = torch.full(shape, float("nan"), dtype=dtype), torch.full(shape, float("nan"), dtype=dtype)
    tables, contents = [], ([], [])
    for i, context_len in enumerate(context_lens):
        table = [ids.pop() for _ in range(num_blocks[i] + ahead[i])]
        position = torch.arange(context_len)
        owned = torch.tensor(table)[position // block_size]
        for j, cache in enumerate(caches):
            cache[table[: num_blocks[i]]] = 0  # the last block's free slots hold no NaN in production
            contents[j].append(randn(context_len, num_kv_heads, head_dim, dtype=dtype, seed=2 * i + j))
            cache[owned, :, position % block_size] = contents[j][i]
        tables.append(table)
    wide = randn(sum(query_lens), num_kv_heads * (group + 1), head_dim, dtype=dtype, seed=99)
    q = wide[:, : num_kv_heads * group]  # a view, as the model passes: queries and keys are rotated as one tensor
    batch = AttentionBatch(list(query_lens), list(context_lens), tables, block_size, torch.device("cpu"))
    return Case(batch, q, *caches, *contents)


@pytest.fixture(autouse=True)
def fake_flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A flash_attn package in plain torch; returns the calls it saw."""
    calls: list[dict] = []

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        calls.append(dict(locals()))
        out = torch.empty_like(q)
        for s in range(len(cu_seqlens_q) - 1):
            rows = slice(*cu_seqlens_q[s : s + 2].tolist())
            keys = slice(*cu_seqlens_k[s : s + 2].tolist())
            group = q.shape[1] // k.shape[1]
            k_s, v_s = (x[keys].float().repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
            q_s = q[rows].float().transpose(0, 1)
            visible = torch.ones(q_s.shape[1], k_s.shape[1], dtype=torch.bool)
            if causal:  # aligned to the bottom right corner
                visible = visible.tril(k_s.shape[1] - q_s.shape[1])
            scores = (q_s @ k_s.transpose(1, 2) * softmax_scale).masked_fill(~visible, float("-inf"))
            out[rows] = (scores.softmax(-1) @ v_s).transpose(0, 1).to(q.dtype)
        return out

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return calls


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
        caches = [Int8Cache(values, scales.nan_to_num(0)) for values, scales in caches]
    reference, kernel = ReferenceAttention(), BACKENDS[backend](dtype)
    expected = reference.forward(case.q, *caches, case.batch, head_dim**-0.5)
    out = kernel.forward(case.q, *caches, kernel.plan(case.batch), head_dim**-0.5)
    assert not out.isnan().any(), "it read a slot that is not its own"
    assert_close(out, expected)
    torch.testing.assert_close(out, case.run(reference), rtol=0.1, atol=0.03)  # and near what was quantised


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
    assert call["softmax_scale"] == 16**-0.5
    assert torch.equal(call["k"], torch.cat(case.keys))
    assert torch.equal(call["v"], torch.cat(case.values))


@pytest.mark.parametrize(
    ("query_lens", "num_decodes"), [([1, 1, 5, 1], 2), ([4, 1], 0), ([1, 1], 2), ([2], 0)], ids=str
)
def test_num_decodes_counts_single_queries_at_the_front(query_lens, num_decodes):
    batch = AttentionBatch(query_lens, query_lens, [[0]] * len(query_lens), 16, torch.device("cpu"))
    assert batch.num_decodes == num_decodes

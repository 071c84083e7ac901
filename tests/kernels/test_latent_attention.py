"""Latent attention and the lightning indexer against their references, on caches whose foreign slots are NaN."""

import functools

import pytest
import torch

from kernels import latent_attention, lightning_indexer
from kernels.lightning_indexer.torch_ops import Selection
from kernels.packed_rows import PackedRow
from kernels.paged_attention import AttentionBatch
from kernels.paged_attention.reference import ReferenceAttention
from tests.kernels.compare import DTYPES, assert_close, dtype_id, int8_cache, natives, packed_cache, randn
from tests.kernels.test_paged_attention import BATCHES

ROTARY = 16
BACKENDS = {
    "reference": latent_attention.reference.ReferenceLatentAttention(),
    "torch": latent_attention.torch_ops.TorchLatentAttention,
    **natives(latent_attention.native.NativeLatentAttention()),
}
VERSIONS = [name for name in BACKENDS if name != "reference"]
SPARSE = {  # attention over selected positions, and the indexer that selects them
    "reference": (BACKENDS["reference"], lightning_indexer.reference),
    "torch": (latent_attention.torch_ops.TorchLatentAttention(torch.float32), lightning_indexer.torch_ops),
    **{
        isa: (attention, natives(lightning_indexer.native)[isa])
        for isa, attention in natives(latent_attention.native.NativeSparseLatentAttention()).items()
    },
}


@functools.cache
def make_case(query_lens, context_lens, *, width=48, block_size=16, dtype=torch.float32, heads=3):
    """A batch over scattered blocks; blocks that are foreign or allocated ahead hold NaN."""
    num_blocks = [-(-n // block_size) for n in context_lens]
    ahead = [i % 3 for i in range(len(context_lens))]
    total = sum(num_blocks) + sum(ahead) + 5
    ids = torch.randperm(total, generator=torch.Generator().manual_seed(1)).tolist()
    cache = torch.full((total, 1, block_size, width), float("nan"), dtype=dtype)
    tables = []
    for i, context_len in enumerate(context_lens):
        table = [ids.pop() for _ in range(num_blocks[i] + ahead[i])]
        cache[table[: num_blocks[i]]] = 0
        position = torch.arange(context_len)
        blocks = torch.tensor(table)[position // block_size]
        cache[blocks, 0, position % block_size] = randn(context_len, width, dtype=dtype, seed=i)
        tables.append(table)
    batch = AttentionBatch(list(query_lens), list(context_lens), tables, block_size, torch.device("cpu"))
    return batch, randn(sum(query_lens), heads, width, dtype=dtype, seed=99), cache


def attend(module, batch, q, cache):
    backend = BACKENDS[module](q.dtype) if module == "torch" else BACKENDS[module]
    return backend.forward(q, cache, backend.plan(batch), q.shape[-1] ** -0.5, q.shape[-1] - ROTARY, None)


def attend_selected(version, batch, q, cache, topk, weights, index_q, index_cache):
    backend, indexer = SPARSE[version]
    plan = backend.plan(batch)
    selection = indexer.lightning_indexer(index_q, weights, index_cache, plan, topk)
    return backend.forward(q, cache, plan, q.shape[-1] ** -0.5, q.shape[-1] - ROTARY, selection), selection


@functools.cache
def expected(lens, dtype):
    return attend("reference", *make_case(*lens, dtype=dtype))


@pytest.mark.parametrize("lens", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_batch_matches_reference(version, dtype, lens):
    out = attend(version, *make_case(*lens, dtype=dtype))
    assert not out.isnan().any(), "it read a slot that is not its own"
    assert_close(out, expected(lens, dtype))


@pytest.mark.parametrize("block_size", [1, 7, 16])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_size_of_block_matches_reference(version, block_size):
    case = make_case((1, 1, 9, 14), (3, 90, 9, 37), block_size=block_size)
    assert_close(attend(version, *case), attend("reference", *case))


@pytest.mark.parametrize(("heads", "width"), [(1, 40), (16, 576), (40, 80), (5, 57)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_number_of_heads_and_size_of_latent_matches_reference(version, dtype, heads, width):
    case = make_case((1, 1, 9, 14), (3, 290, 9, 37), heads=heads, width=width, dtype=dtype)
    assert_close(attend(version, *case), attend("reference", *case))


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_cache_of_int8_matches_reference(version, dtype, width):
    batch, q, cache = make_case((1, 1, 1, 9, 14), (3, 290, 1300, 9, 37), width=width, dtype=dtype)
    cache = cache.clone()
    cache[..., -ROTARY:] *= 20  # the two parts need scales of their own
    q = q.clone()
    q[..., -ROTARY:] /= 20
    quantized = int8_cache(cache, [width - ROTARY, ROTARY])
    if version == "torch":  # it reads slots that nobody wrote, and leaves them to KVCachePool.clear
        quantized = quantized._replace(scales=quantized.scales.nan_to_num(0))
    out = attend(version, batch, q, quantized)
    assert not out.isnan().any(), "it read a slot that is not its own"
    assert_close(out, attend("reference", batch, q, quantized))
    torch.testing.assert_close(out, attend("reference", batch, q, cache), rtol=0.1, atol=0.03)


@pytest.mark.parametrize(("latent_dim", "block_size"), [(32, 7), (512, 16)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_cache_of_packed_latents_matches_reference(version, dtype, latent_dim, block_size):
    lens = ((1, 1, 1, 9, 14), (3, 90, 600, 9, 37))
    batch, q, cache = make_case(*lens, width=latent_dim + ROTARY, dtype=dtype, block_size=block_size)
    packed = packed_cache(cache, PackedRow(latent_dim, 4, ROTARY))
    if version == "torch":
        packed = packed._replace(scales=packed.scales.nan_to_num(0))
    out = attend(version, batch, q, packed)
    assert not out.isnan().any(), "it read a slot that is not its own"
    assert_close(out, attend("reference", batch, q, packed))
    whole = attend("reference", batch, q, cache)
    assert (out - whole).float().square().mean() < 0.02 * whole.float().square().mean()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("isa", natives(latent_attention.native))
def test_native_results_are_the_same_to_the_bit_alone_and_in_a_batch(isa, dtype):
    batch, q, cache = make_case((1, 1, 30, 25), (2600, 70, 300, 1034), dtype=dtype)
    out = attend(isa, batch, q, cache)
    rows = [slice(0, 1), slice(1, 2), slice(2, 32), slice(32, 57)]
    for i, own in enumerate(rows):
        assert torch.equal(out[own], attend(isa, batch.only([i]), q[own], cache))
    for start in range(0, 25, 5):  # in chunks
        chunk = AttentionBatch([5], [1014 + start], [batch.block_tables[3]], 16, torch.device("cpu"))
        own = slice(32 + start, 37 + start)
        assert torch.equal(out[own], attend(isa, chunk, q[own], cache))


def test_a_long_chunk_in_slices_matches_reference(monkeypatch):
    case = make_case((1, 40), (8, 70))
    expected = attend("torch", *case)
    monkeypatch.setattr(latent_attention.torch_ops, "_MAX_SCORES", 3 * 70 * 7)  # seven queries at once
    assert_close(attend("torch", *case), expected)


@pytest.mark.parametrize("lens", BATCHES.values(), ids=BATCHES.keys())
def test_reference_is_attention_with_one_key_head_whose_values_are_part_of_its_keys(lens):
    batch, q, cache = make_case(*lens)
    reference = ReferenceAttention()
    expected = reference.forward(q, cache, cache, reference.plan(batch), q.shape[-1] ** -0.5)
    torch.testing.assert_close(attend("reference", batch, q, cache), expected[:, :, :-ROTARY])


@functools.cache
def selected(version, lens, topk):
    batch, q, cache = make_case(*lens)
    _, index_q, index_cache = make_case(*lens, width=24, heads=4)
    weights = randn(len(q), 4, dtype=torch.float32, seed=5)
    return attend_selected(version, batch, q, cache, topk, weights, index_q, index_cache)


@pytest.mark.parametrize("topk", [1, 33, 64])
@pytest.mark.parametrize("lens", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("version", [name for name in SPARSE if name != "reference"])
def test_attention_over_selected_positions_matches_reference(version, lens, topk):
    (out, selection), (expected, reference) = (selected(name, lens, topk) for name in (version, "reference"))
    assert (selection is None) <= (reference is None), "the whole was kept where the reference selects"
    assert not out.isnan().any()
    assert_close(out, expected)


@pytest.mark.parametrize("isa", natives(None))
def test_native_attention_over_given_positions_matches_reference_in_bf16(isa):
    batch, q, cache = make_case((1, 1, 1), (700, 60, 1300), dtype=torch.bfloat16, heads=16, width=576)
    attention = SPARSE[isa][0]
    chosen = [torch.randperm(n, generator=torch.Generator().manual_seed(n))[:64].sort().values for n in (700, 60, 1300)]
    positions = torch.stack([torch.cat([row, row.new_full((64 - len(row),), 60)]) for row in chosen])
    out = attention.forward(q, cache, attention.plan(batch), 0.1, 512, Selection([positions], []))
    reference = BACKENDS["reference"].forward(q, cache, batch, 0.1, 512, [row.tolist() for row in chosen])
    assert_close(out, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("isa", natives(None))
def test_the_native_indexer_selects_what_the_scores_say(isa, dtype):
    """Whole numbers, whose scores are exact: many are equal, and of these the first positions are taken."""
    batch, q, cache = make_case((1, 1, 1), (700, 20, 1300), width=40, heads=5)
    q, cache = ((x.nan_to_num(0) * 1.5).round().to(dtype) for x in (q, cache))
    weights = randn(3, 5, dtype=torch.float32).round()
    plan = SPARSE[isa][0].plan(batch)
    selected = SPARSE[isa][1].lightning_indexer(q, weights, cache, plan, 50).positions[0]
    expected = lightning_indexer.reference.lightning_indexer(q, weights, cache, batch, 50)
    assert [row[row < n].tolist() for row, n in zip(selected, batch.context_lens, strict=True)] == expected


def test_the_indexer_keeps_the_best_positions_and_the_first_of_equal_ones():
    """Scores by hand: one head, one value, so that a position's score is its key (negative ones are cut to 0)."""
    keys = torch.tensor([1.0, 5.0, -2.0, 5.0, 3.0, -1.0, 0.0, 4.0])
    batch = AttentionBatch([8], [8], [[1, 0]], 4, torch.device("cpu"))
    cache = torch.stack([keys[4:], keys[:4]])[:, None, :, None]
    plan = latent_attention.torch_ops.TorchLatentAttention(torch.float32).plan(batch)
    one = torch.ones(8, 1)
    selection = lightning_indexer.torch_ops.lightning_indexer(one[:, :, None], one, cache, plan, 3)
    kept = [row.nonzero().flatten().tolist() for row in selection.visible[0]]
    assert kept == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [1, 3, 4], [1, 3, 4], [1, 3, 4], [1, 3, 7]]
    zeros = lightning_indexer.torch_ops.lightning_indexer(-one[:, :, None] * 0, one, cache, plan, 3)
    assert [row.nonzero().flatten().tolist() for row in zeros.visible[0]] == [[0], [0, 1]] + [[0, 1, 2]] * 6


def test_a_long_chunk_is_selected_in_slices(monkeypatch):
    batch, q, cache = make_case((1, 40), (8, 70), width=24, heads=4)
    weights = randn(len(q), 4, dtype=torch.float32, seed=5)
    plan = latent_attention.torch_ops.TorchLatentAttention(torch.float32).plan(batch)
    whole = lightning_indexer.torch_ops.lightning_indexer(q, weights, cache, plan, 9).visible[0]
    monkeypatch.setattr(lightning_indexer.torch_ops, "_QUERIES_AT_ONCE", 7)
    assert torch.equal(lightning_indexer.torch_ops.lightning_indexer(q, weights, cache, plan, 9).visible[0], whole)
    assert whole.sum(1).tolist() == [9] * 40

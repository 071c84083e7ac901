import pytest
import torch

from kernels import store_kv
from kernels.kv_cache import Int8Cache, quantize, take, values_of
from tests.kernels.compare import DTYPES, Layout, assert_close, dtype_id, natives, randn
from tests.kernels.test_rotary import tables


class StoreOfRows:
    """Its caches lie in rows, as its reference's do."""

    store_latents = staticmethod(store_kv.native.store_latents)

    def rotate_and_store(self, qkv, cos, sin, k_cache, v_cache, slot_mapping):
        layout = Layout(qkv.dtype)
        sides = ((k_cache, layout.keys), (v_cache, layout.values))
        laid = [convert(cache) for cache, convert in sides]
        q = store_kv.native.rotate_and_store(qkv, cos, sin, *laid, slot_mapping)
        for inside, (cache, convert) in zip(laid, sides, strict=True):
            values_of(cache).copy_(values_of(convert(inside, to_rows=True)))
        return q


VERSIONS = {"torch": store_kv.torch_ops, **natives(StoreOfRows())}


def slots(num_tokens: int, num_blocks: int, block_size: int) -> torch.Tensor:
    return torch.randperm(num_blocks * block_size, generator=torch.Generator().manual_seed(3))[:num_tokens]


@pytest.mark.parametrize("block_size", [1, 7, 16])
@pytest.mark.parametrize(("num_tokens", "num_heads", "head_dim"), [(1, 1, 16), (13, 3, 64), (20, 2, 5)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_store_kv_matches_reference(dtype, num_tokens, num_heads, head_dim, block_size):
    num_blocks = -(-num_tokens // block_size) + 2
    slot_mapping = slots(num_tokens, num_blocks, block_size)
    x = randn(num_tokens, num_heads + 2, head_dim, dtype=dtype)[:, 1:-1]  # a view, as the model passes
    cache = randn(num_blocks, num_heads, block_size, head_dim, dtype=dtype, seed=1)
    expected, before = cache.clone(), cache.clone()
    store_kv.reference.store_kv(x, expected, slot_mapping)
    store_kv.torch_ops.store_kv(x, cache, slot_mapping)

    assert torch.equal(cache, expected)
    assert torch.equal(cache.transpose(1, 2).flatten(0, 1)[slot_mapping], x)
    assert_only_written(cache, before, slot_mapping)


def assert_only_written(cache, before, slot_mapping):
    kept = torch.ones(cache.shape[0] * cache.shape[2], dtype=torch.bool)
    kept[slot_mapping] = False
    by_slot, before_by_slot = (x.transpose(1, 2).flatten(0, 1) for x in (cache, before))
    assert torch.equal(by_slot[kept], before_by_slot[kept])


@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim"),
    [(1, 1, 1, 16), (13, 9, 3, 64), (40, 4, 4, 6), (3, 8, 1, 40)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_rotate_and_store_matches_reference(version, dtype, num_tokens, num_heads, num_kv_heads, head_dim, block_size):
    num_blocks = -(-num_tokens // block_size) + 2
    slot_mapping = slots(num_tokens, num_blocks, block_size)
    qkv = randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    turned = tables(torch.arange(num_tokens) * 37 % 501, head_dim)
    before = [randn(num_blocks, num_kv_heads, block_size, head_dim, dtype=dtype, seed=i) for i in (1, 2)]
    expected, actual = [x.clone() for x in before], [x.clone() for x in before]
    expected_q = store_kv.reference.rotate_and_store(qkv, *turned, *expected, slot_mapping)
    q = VERSIONS[version].rotate_and_store(qkv, *turned, *actual, slot_mapping)

    assert_close(q, expected_q)
    assert_close(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    for cache, old in zip(actual, before, strict=True):
        assert_only_written(cache, old, slot_mapping)


@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize(
    ("num_tokens", "latent_dim", "rotary_dim"), [(1, 16, 2), (13, 512, 64), (40, 24, 16), (2, 37, 6)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_store_latents_matches_reference(version, dtype, num_tokens, latent_dim, rotary_dim, block_size):
    num_blocks, width = -(-num_tokens // block_size) + 2, latent_dim + rotary_dim
    slot_mapping = slots(num_tokens, num_blocks, block_size)
    x = randn(num_tokens, width + 10, dtype=dtype)[:, 10:]  # a view, as the model passes
    arguments = (randn(latent_dim, dtype=dtype, seed=4), 1e-6, *tables(torch.arange(num_tokens) * 7, rotary_dim))
    before = randn(num_blocks, 1, block_size, width, dtype=dtype, seed=1)
    expected, actual = before.clone(), before.clone()
    store_kv.reference.store_latents(x, *arguments, expected, slot_mapping)
    VERSIONS[version].store_latents(x, *arguments, actual, slot_mapping)

    assert_close(actual, expected)
    assert not torch.equal(actual, before)
    assert_only_written(actual, before, slot_mapping)


def empty_int8(num_blocks, num_heads, block_size, width, num_scales):
    values = torch.full((num_blocks, num_heads, block_size, width), 99, dtype=torch.int8)
    return Int8Cache(values, torch.full((num_blocks, num_heads, block_size, num_scales), float("nan")))


def assert_int8_close(actual, expected, slot_mapping):
    """Scales alike, values within one step (a rounding that falls the other way), and nothing else written."""
    torch.testing.assert_close(actual.scales, expected.scales, rtol=1e-2, atol=0, equal_nan=True)
    assert (actual.values.int() - expected.values.int()).abs().max() <= 1
    assert (actual.values == 127).any() or (actual.values == -127).any()
    assert_only_written(actual.values, torch.full_like(actual.values, 99), slot_mapping)


@pytest.mark.parametrize("block_size", [7, 32])
@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_rotate_and_store_to_int8_matches_reference(version, dtype, head_dim, block_size):
    slot_mapping = slots(20, 6, block_size)
    qkv = randn(20, 4 + 2 * 2, head_dim, dtype=dtype) * 3
    qkv[3] = 0
    turned = tables(torch.arange(20) * 37 % 501, head_dim)
    expected, actual = ([empty_int8(6, 2, block_size, head_dim, 1) for _ in range(2)] for _ in range(2))
    expected_q = store_kv.reference.rotate_and_store(qkv, *turned, *expected, slot_mapping)
    assert_close(VERSIONS[version].rotate_and_store(qkv, *turned, *actual, slot_mapping), expected_q)
    for mine, reference in zip(actual, expected, strict=True):
        assert_int8_close(mine, reference, slot_mapping)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_store_latents_to_int8_matches_reference(version, dtype):
    slot_mapping = slots(20, 6, 7)
    arguments = (randn(20, 56, dtype=dtype) * 3, randn(40, dtype=dtype, seed=4), 1e-6, *tables(torch.arange(20), 16))
    expected, actual = empty_int8(6, 1, 7, 56, 2), empty_int8(6, 1, 7, 56, 2)
    store_kv.reference.store_latents(*arguments, expected, slot_mapping)
    VERSIONS[version].store_latents(*arguments, actual, slot_mapping)
    assert_int8_close(actual, expected, slot_mapping)


def test_quantised_rows_come_back_within_half_a_step():
    x = randn(3, 2, 5, 24, dtype=torch.float32)
    x[1, 1, 2] = 0
    cache = quantize(x, [16, 8])
    assert cache.scales.shape == (3, 2, 5, 2)
    back = take(cache, torch.tensor([2, 1]), torch.float32, first=16)
    steps = cache.scales[[2, 1]].repeat_interleave(torch.tensor([16, 8]), -1)
    assert ((back - x[[2, 1]]).abs() <= 0.501 * steps).all()

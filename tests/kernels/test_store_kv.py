import pytest
import torch

from kernels import store_kv
from kernels.kv_cache import Int8Cache, quantize, take
from tests.kernels.compare import DTYPES, dtype_id, randn


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


def empty_int8(num_blocks, num_heads, block_size, width, num_scales):
    values = torch.full((num_blocks, num_heads, block_size, width), 99, dtype=torch.int8)
    return Int8Cache(values, torch.full((num_blocks, num_heads, block_size, num_scales), float("nan")))


def assert_int8_close(actual, expected, slot_mapping):
    """Scales alike, values within one step (a rounding that falls the other way), and nothing else written."""
    torch.testing.assert_close(actual.scales, expected.scales, rtol=1e-2, atol=0, equal_nan=True)
    assert (actual.values.int() - expected.values.int()).abs().max() <= 1
    assert (actual.values == 127).any() or (actual.values == -127).any()
    assert_only_written(actual.values, torch.full_like(actual.values, 99), slot_mapping)


def assert_packed_close(actual, expected, written):
    """Bytes and scales alike but for a few rows (a rounding that falls the other way), and nothing else written."""
    assert torch.equal(actual.values[written == 255], torch.full_like(actual.values, 255)[written == 255])
    assert (actual.values == expected.values)[written != 255].float().mean() > 0.95
    same = (actual.scales == expected.scales) | (actual.scales.isnan() & expected.scales.isnan())
    assert same.float().mean() > 0.95


def test_quantised_rows_come_back_within_half_a_step():
    x = randn(3, 2, 5, 24, dtype=torch.float32)
    x[1, 1, 2] = 0
    cache = quantize(x, [16, 8])
    assert cache.scales.shape == (3, 2, 5, 2)
    back = take(cache, torch.tensor([2, 1]), torch.float32, first=16)
    steps = cache.scales[[2, 1]].repeat_interleave(torch.tensor([16, 8]), -1)
    assert ((back - x[[2, 1]]).abs() <= 0.501 * steps).all()

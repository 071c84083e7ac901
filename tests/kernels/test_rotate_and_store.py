import pytest
import torch

from kernels.backends import ReferenceOps, TorchOps
from kernels.kv_cache import take, values_of
from kernels.packed_rows import PackedRow
from tests.kernels.compare import DTYPES, NATIVE, Layout, assert_close, dtype_id, empty_packed, natives, randn
from tests.kernels.test_rotary import tables
from tests.kernels.test_store_kv import assert_int8_close, assert_only_written, assert_packed_close, empty_int8, slots


def store_of_rows(qkv, cos, sin, k_cache, v_cache, slot_mapping):
    """On caches that lie in rows, as the reference's do."""
    layout = Layout(qkv.dtype)
    sides = ((k_cache, layout.keys), (v_cache, layout.values))
    laid = [convert(cache) for cache, convert in sides]
    q = NATIVE.rotate_and_store(qkv, cos, sin, *laid, slot_mapping)
    for inside, (cache, convert) in zip(laid, sides, strict=True):
        values_of(cache).copy_(values_of(convert(inside, to_rows=True)))
    return q


REFERENCE = ReferenceOps(torch.float32).rotate_and_store
VERSIONS = {"torch": TorchOps(torch.float32).rotate_and_store, **natives(store_of_rows)}


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
    expected_q = REFERENCE(qkv, *turned, *expected, slot_mapping)
    q = VERSIONS[version](qkv, *turned, *actual, slot_mapping)

    assert_close(q, expected_q)
    assert_close(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    for cache, old in zip(actual, before, strict=True):
        assert_only_written(cache, old, slot_mapping)


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
    expected_q = REFERENCE(qkv, *turned, *expected, slot_mapping)
    assert_close(VERSIONS[version](qkv, *turned, *actual, slot_mapping), expected_q)
    for mine, reference in zip(actual, expected, strict=True):
        assert_int8_close(mine, reference, slot_mapping)


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("head_dim", [16, 64, 96])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", ["torch", *natives(None)])
def test_rotate_and_store_to_packed_rows_matches_reference(version, dtype, head_dim, block_size):
    slot_mapping = slots(20, 6, block_size)
    qkv = randn(20, 4 + 2 * 2, head_dim, dtype=dtype) * 3
    qkv[3] = 0
    turned = tables(torch.arange(20) * 37 % 501, head_dim)
    rows = PackedRow(head_dim, 5), PackedRow(head_dim, 4)
    expected, actual, written = ([empty_packed(6, 2, block_size, row) for row in rows] for _ in range(3))
    expected_q = REFERENCE(qkv, *turned, *expected, slot_mapping)
    for cache in written:
        cache.values[slot_mapping // block_size, :, slot_mapping % block_size] = 0
    operation = TorchOps(torch.float32) if version == "torch" else natives(NATIVE)[version]
    assert_close(operation.rotate_and_store(qkv, *turned, *actual, slot_mapping), expected_q)
    if version != "torch":
        layout = natives(Layout)[version](dtype)
        expected, written = ([layout.keys(keys), layout.values(values)] for keys, values in (expected, written))
    for mine, reference, mask in zip(actual, expected, written, strict=True):
        assert_packed_close(mine, reference, mask.values)


def test_int8_keys_with_a_large_channel_keep_the_small_ones():
    head_dim, num_tokens = 64, 20
    qkv = randn(num_tokens, 3, head_dim, dtype=torch.float32)
    qkv[:, 1, 5] = 300.0
    turned = torch.ones(num_tokens, head_dim), torch.zeros(num_tokens, head_dim)
    slot_mapping = torch.arange(num_tokens)
    k_cache, v_cache = (empty_int8(2, 1, 16, head_dim, 1) for _ in range(2))
    q = REFERENCE(qkv, *turned, k_cache, v_cache, slot_mapping)[:, 0]
    keys = take(k_cache, torch.arange(2), torch.float32).flatten(0, 2)[:num_tokens]
    error = (q @ keys.T - qkv[:, 0] @ qkv[:, 1].T).square().mean().sqrt()
    assert error < 1.5, "it is 0.7, and 5.5 without the Hadamard matrix"

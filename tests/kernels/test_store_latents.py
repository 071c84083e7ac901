import pytest
import torch

from kernels.backends import ReferenceOps, TorchOps
from kernels.packed_rows import PackedRow
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, empty_packed, natives, randn
from tests.kernels.test_rotary import tables
from tests.kernels.test_store_kv import assert_int8_close, assert_only_written, assert_packed_close, empty_int8, slots

REFERENCE = ReferenceOps(torch.float32).store_latents
VERSIONS = {"torch": TorchOps(torch.float32).store_latents, **natives(NATIVE.store_latents)}


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
    REFERENCE(x, *arguments, expected, slot_mapping)
    VERSIONS[version](x, *arguments, actual, slot_mapping)

    assert_close(actual, expected)
    assert not torch.equal(actual, before)
    assert_only_written(actual, before, slot_mapping)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_store_latents_to_int8_matches_reference(version, dtype):
    slot_mapping = slots(20, 6, 7)
    arguments = (randn(20, 56, dtype=dtype) * 3, randn(40, dtype=dtype, seed=4), 1e-6, *tables(torch.arange(20), 16))
    expected, actual = empty_int8(6, 1, 7, 56, 2), empty_int8(6, 1, 7, 56, 2)
    REFERENCE(*arguments, expected, slot_mapping)
    VERSIONS[version](*arguments, actual, slot_mapping)
    assert_int8_close(actual, expected, slot_mapping)


@pytest.mark.parametrize("latent_dim", [32, 96, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_store_latents_to_packed_rows_matches_reference(version, dtype, latent_dim):
    slot_mapping, row = slots(20, 6, 7), PackedRow(latent_dim, 4, 16)
    weight = randn(latent_dim, dtype=dtype, seed=4)
    arguments = (randn(20, latent_dim + 16, dtype=dtype) * 3, weight, 1e-6, *tables(torch.arange(20), 16))
    expected, actual, written = (empty_packed(6, 1, 7, row) for _ in range(3))
    REFERENCE(*arguments, expected, slot_mapping)
    VERSIONS[version](*arguments, actual, slot_mapping)
    written.values[slot_mapping // 7, :, slot_mapping % 7] = 0
    assert_packed_close(actual, expected, written.values)

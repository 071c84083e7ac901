"""Rows of 4 and 5 bits by torch: how near they come, how large they are, and what rotating does."""

import pytest
import torch

from kernels.kv_cache import PackedCache, take
from kernels.packed_rows import PackedRow, decode, encode, rotate
from tests.kernels.compare import randn

ROWS = {  # a row, its bytes, and the most that it may lose of normal values: the squared error
    "values": (PackedRow(64, 4), 32, 0.009),
    "keys": (PackedRow(64, 5), 40, 0.003),
    "latents": (PackedRow(512, 4, 64), 320, 0.0105),
    "an odd number of halves": (PackedRow(80, 5), 58, 0.003),
    "one half": (PackedRow(16, 4), 16, 0.009),
}


@pytest.mark.parametrize(("row", "num_bytes", "bound"), ROWS.values(), ids=ROWS.keys())
def test_rows_come_back_nearly(row, num_bytes, bound):
    x = randn(500, 2, row.size + row.num_int8, dtype=torch.float32)
    packed, scales = encode(x, row)
    assert packed.shape == (500, 2, num_bytes)
    assert row.num_bytes == num_bytes
    assert scales.shape == (500, 2, row.num_scales)
    back = decode(packed, scales, row)
    error = (back - x).square()
    assert error[..., : row.size].mean() < bound
    if row.num_int8:
        assert error[..., row.size :].max() < (x.abs().max() / 127) ** 2


@pytest.mark.parametrize("bits", [4, 5])
def test_one_large_value_spoils_no_others(bits):
    """What rotating is for: with one scale for a row as it is, 15 steps up to 50 would leave nothing of the others."""
    x = randn(200, 64, dtype=torch.float32)
    x[:, 7] = 50
    row = PackedRow(64, bits)
    error = decode(*encode(x, row), row) - x
    assert error.square().mean() < (1.0 if bits == 4 else 0.1)


@pytest.mark.parametrize("size", [16, 64, 80, 96, 512])
def test_rotating_twice_is_nothing_and_keeps_products(size):
    x, y = randn(2, 9, size, dtype=torch.float32)
    torch.testing.assert_close(rotate(rotate(x)), x)
    torch.testing.assert_close((rotate(x) * rotate(y)).sum(-1), (x * y).sum(-1), rtol=1e-4, atol=1e-4)


def test_rows_of_zeros_stay_nearly_so():
    for row in (PackedRow(64, 4), PackedRow(64, 5), PackedRow(32, 4, 16)):
        assert decode(*encode(torch.zeros(3, row.size + row.num_int8), row), row).abs().max() < 1e-10


def test_blocks_are_taken_as_floats():
    row = PackedRow(64, 5)
    x = randn(4, 2, 16, 64, dtype=torch.float32)
    cache = PackedCache(*encode(x, row), row)
    taken = take(cache, torch.tensor([2, 0]), torch.bfloat16)
    assert taken.dtype is torch.bfloat16
    torch.testing.assert_close(taken.float(), x[[2, 0]], rtol=0, atol=0.4)

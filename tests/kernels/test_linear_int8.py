"""Int8 linear layers against whole numbers in numpy, and against the reference."""

import numpy as np
import pytest
import torch

from kernels import hadamard, linear, linear_int8
from kernels.linear_int8 import Input, QuantizedWeight, StaticInput, quantize_rows, quantize_weight
from tests.kernels.compare import DTYPES, assert_close, dtype_id, natives, randn

VERSIONS = {
    "reference": lambda weight, bias, _: linear_int8.reference.linear_int8(weight, bias),
    "torch": lambda weight, bias, _: linear_int8.torch_ops.linear_int8(weight, bias),
    **natives(lambda weight, bias, dtype: linear.native.linear(weight, bias, dtype, dtype)),
}

GRID = StaticInput(0.05, 93)
INPUTS = {"static": GRID, "dynamic": Input.DYNAMIC, "weight only": Input.FLOAT}
SHAPES = [(1, 64, 96), (3, 17, 5), (33, 63, 65), (130, 96, 1), (2, 1, 7)]


def random_weight(num_out: int, num_in: int, input_) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(-127, 128, (num_out, num_in), generator=generator, dtype=torch.int8)
    return QuantizedWeight(values, torch.rand(num_out, generator=generator) / 127 + 1e-4, input_)


def exact(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None) -> np.ndarray:
    """The contract in fp64, written a second time, in numpy."""
    x64, w64 = x.double().numpy(), weight.values_OI.numpy().astype(np.float64)
    scale = np.ones((len(x64), 1))
    if weight.input is not Input.FLOAT:
        if weight.input is Input.DYNAMIC:
            low = np.minimum(x64.min(1, keepdims=True), 0).astype(np.float32)
            high = np.maximum(x64.max(1, keepdims=True), 0).astype(np.float32)
            scale = ((high - low) / np.float32(255)).astype(np.float32)
            scale[scale == 0] = 1
            zero = np.rint(-low * (1 / scale))
        else:
            scale, zero = np.float32(weight.input.scale), weight.input.zero_point
        x64 = np.clip(np.rint(x.float().numpy() * (1 / scale).astype(np.float32)) + zero, 0, 255) - zero
    y = x64.astype(np.float64) @ w64.T * scale * weight.scale_O.double().numpy()
    return y if bias is None else y + bias.double().numpy()


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("input_", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_product_is_exact_but_for_the_rounding_of_its_result(version, input_, dtype, shape, with_bias):
    num_tokens, num_in, num_out = shape
    x = randn(num_tokens, num_in, dtype=dtype, seed=1)
    weight = random_weight(num_out, num_in, input_)
    bias = randn(num_out, dtype=dtype, seed=3) if with_bias else None
    expected = torch.from_numpy(exact(x, weight, bias))
    y = VERSIONS[version](weight, bias, dtype)(x)
    assert y.dtype is dtype
    rtol, atol = (1e-5, 1e-4) if dtype is torch.float32 else (2e-2, 2e-2)
    torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("block", [1, 16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_inputs_and_weight_are_rotated_in_blocks(version, dtype, block):
    size = 3 * block
    assert hadamard.block_size(size) == block
    x, weight = randn(5, size, dtype=dtype, seed=1), randn(20, size, dtype=torch.float32, seed=2)
    x[3, 1] = 300  # what a rotation is for
    rotated = quantize_weight(weight, Input.DYNAMIC, block)
    y = VERSIONS[version](rotated, None, dtype)(x)
    assert_close(y, linear_int8.reference.linear_int8(rotated, None)(x))
    expected = x.float() @ weight.T
    assert ((y.float() - expected).norm(dim=1) / expected.norm(dim=1)).max() < (0.1 if block < 64 else 0.02)
    torch.testing.assert_close(rotated.dequantize(torch.float32), weight, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("input_", INPUTS.values(), ids=INPUTS)
def test_without_onednn_the_result_is_the_same(monkeypatch, input_, dtype):
    x, weight = randn(5, 64, dtype=dtype, seed=1), random_weight(48, 64, input_)
    expected = linear_int8.torch_ops.linear_int8(weight, None)(x)
    monkeypatch.setattr(linear_int8.torch_ops, "has_exact_product", lambda device: False)
    actual = linear_int8.torch_ops.linear_int8(weight, None)(x)
    assert actual.dtype is expected.dtype is dtype
    torch.testing.assert_close(actual.float(), expected.float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("input_", INPUTS.values(), ids=INPUTS)
def test_one_packed_weight_serves_any_number_of_tokens_and_rows_are_independent(input_):
    weight = random_weight(48, 32, input_)
    apply, expected = linear_int8.torch_ops.linear_int8(weight, None), linear_int8.reference.linear_int8(weight, None)
    for num_tokens in (1, 8, 9, 32, 257):
        x = randn(num_tokens, 32, dtype=torch.float32, seed=num_tokens)
        assert_close(apply(x), expected(x))
        if input_ is not Input.FLOAT:  # whole numbers add up the same in any order
            assert torch.equal(apply(x)[-1], apply(x[-1:])[0])


ROWS = {
    "zeros": torch.zeros(64),
    "all negative": -torch.rand(64, generator=torch.Generator().manual_seed(5)) - 3,
    "all positive": torch.rand(64, generator=torch.Generator().manual_seed(6)) + 3,
    "a huge outlier": torch.cat([torch.full((63,), 0.5), torch.tensor([3e4])]),
    "tiny": torch.full((64,), 1e-20),
    "the least and the greatest": torch.tensor([-127.0, 128.0] * 32),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("version", VERSIONS)
def test_dynamic_rows_are_within_half_a_step_of_their_numbers(version, row):
    weight = QuantizedWeight(torch.eye(64, dtype=torch.int8) * 127, torch.full((64,), 1 / 127), Input.DYNAMIC)
    x = torch.stack([randn(64, dtype=torch.float32), row])
    y = VERSIONS[version](weight, torch.zeros(64), torch.float32)(x)
    step = (row.max().clamp(min=0) - row.min().clamp(max=0)) / 255
    assert (y[1] - row).abs().max() <= step * 0.501
    assert torch.equal(y[:1], VERSIONS[version](weight, torch.zeros(64), torch.float32)(x[:1]))


@pytest.mark.parametrize("version", VERSIONS)
def test_static_inputs_beyond_the_grid_get_its_ends(version):
    weight = QuantizedWeight(torch.tensor([[100]], dtype=torch.int8), torch.tensor([0.01]), GRID)
    y = VERSIONS[version](weight, None, torch.float32)(torch.tensor([[-99.0], [0.0], [99.0]]))
    torch.testing.assert_close(y.flatten(), torch.tensor([GRID.range[0], 0.0, GRID.range[1]]))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_largest_products_do_not_saturate(version):
    """Where a sum of two u8 x s8 products passes 16 bits."""
    weight = QuantizedWeight(torch.full((4, 128), 127, dtype=torch.int8), torch.ones(4), StaticInput(1.0, 0))
    y = VERSIONS[version](weight, None, torch.float32)(torch.full((3, 128), 255.0))
    assert (y == 255 * 127 * 128).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_row_that_is_nan_spoils_no_other(version):
    x, weight = randn(3, 64, dtype=torch.float32), random_weight(16, 64, Input.DYNAMIC)
    apply = VERSIONS[version](weight, None, torch.float32)
    expected = apply(x)
    x[1, 7] = float("nan")
    actual = apply(x)
    assert actual[1].isnan().all()
    assert torch.equal(actual[::2], expected[::2])


def test_a_weight_is_within_half_a_step_of_its_numbers_and_uses_the_whole_range():
    weight = randn(6, 50, dtype=torch.float32)
    weight[2] = 0
    weight[3] *= 1000
    quantized = quantize_weight(weight, Input.DYNAMIC)
    assert quantized.values_OI.dtype is torch.int8
    assert quantized.values_OI.abs().amax(1).tolist() == [127, 127, 0, 127, 127, 127]
    error = (quantized.dequantize(torch.float32) - weight).abs().amax(1)
    assert (error <= quantized.scale_O * 0.501).all()
    assert quantized.scale_O[2] == 1


@pytest.mark.parametrize(
    ("low", "high", "zero_point"), [(-1.0, 3.0, 64), (2.0, 4.0, 0), (-4.0, -2.0, 255), (0.0, 0.0, 0)]
)
def test_a_static_grid_holds_its_range_and_zero(low, high, zero_point):
    grid = StaticInput.over(low, high)
    assert grid.zero_point == zero_point
    assert grid.range[0] <= min(low, 0) + grid.scale
    assert grid.range[1] >= max(high, 0) - grid.scale


def test_rows_made_uint8_use_the_whole_range():
    x_q, scale, zero = quantize_rows(torch.tensor([[-1.0, 0.0, 4.1], [0.0, 1.2, 2.0]]))
    assert x_q.tolist() == [[0, 50, 255], [0, 153, 255]]
    assert zero.flatten().tolist() == [50, 0]
    torch.testing.assert_close(scale.flatten(), torch.tensor([0.02, 2 / 255]))

"""Linear layers of packed blocks: the reference against numpy, and the fast versions against the reference."""

import numpy as np
import pytest
import torch

from kernels import block_linear, ops
from kernels.block_weight import FORMATS, stack
from kernels.quantized_weight import Input
from tests.kernels.compare import DTYPES, assert_close, dtype_id, randn
from tests.support.blocks import random_weight

REFERENCE = block_linear.reference.block_linear


def rounded(x: np.ndarray, group: int) -> np.ndarray:
    """The inputs on the grids of their groups, written a second time, in numpy."""
    made = np.zeros_like(x)
    for first in range(0, x.shape[1], group):
        part = x[:, first : first + group]
        largest = np.abs(part).max(1, keepdims=True)
        scale = np.where(largest == 0, 1, largest / np.float32(127))
        made[:, first : first + group] = np.rint(part / scale) * scale
    return made


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.group])
def test_the_reference_is_the_product_of_rounded_inputs_and_values(name):
    weight, x = random_weight(name, 24, 512), randn(3, 512, dtype=torch.float32)
    values = weight.dequantize(torch.float32).double().numpy()
    expected = rounded(x.numpy(), FORMATS[name].group).astype(np.float64) @ values.T
    torch.testing.assert_close(REFERENCE(weight, None)(x).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_backends_agree_up_to_the_rounding_of_inputs(backend, dtype):
    weight = stack([random_weight("q4_k", 40, 256, seed=1), random_weight("q6_k", 24, 256, seed=2)])
    x, bias = randn(5, 256, dtype=dtype, seed=3), randn(64, dtype=dtype, seed=4)
    y = ops.BACKENDS[backend](dtype).projection(weight, bias, torch.float32)(x)
    expected = REFERENCE(weight, bias, torch.float32)(x)
    assert ((y - expected).norm() / expected.norm()).item() < 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["q5_k", "fp8_128"])
def test_inputs_in_floats_lose_nothing(name, dtype):
    weight, x = random_weight(name, 40, 256, Input.FLOAT), randn(5, 256, dtype=dtype)
    y = REFERENCE(weight, None, torch.float32)(x)
    assert_close(y, x.float() @ weight.dequantize(torch.float32).T)


def test_a_row_of_zeros_gives_the_bias_and_one_that_is_not_finite_spoils_no_other():
    weight, bias = random_weight("q4_0", 8, 64), randn(8, dtype=torch.float32)
    x = randn(4, 64, dtype=torch.float32)
    x[1], x[2, 5], x[3, 40] = 0, float("nan"), float("inf")
    y = REFERENCE(weight, bias)(x)
    assert torch.equal(y[1], bias)
    assert y[2:].isnan().all()
    assert torch.equal(y[0], REFERENCE(weight, bias)(x[:1])[0])

import pytest
import torch

from kernels import linear
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

SHAPES = [(1, 64, 96), (3, 17, 5), (33, 63, 65), (130, 96, 1), (2, 1, 7)]
NATIVES = natives(NATIVE.linear)
VERSIONS = {"torch": linear.torch_ops.linear, **NATIVES}
WIDE = {"torch": lambda weight, bias: linear.torch_ops.linear(weight, bias, torch.float32), **NATIVES}
CASES = [(version, dtype) for version in VERSIONS for dtype in DTYPES]


def case_id(case: tuple) -> str:
    return f"{case[0]}-{dtype_id(case[1])}"


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_linear_matches_reference(case, shape, with_bias):
    version, dtype = case
    num_tokens, num_in, num_out = shape
    x = randn(num_tokens, num_in, dtype=dtype, seed=1)
    weight = randn(num_out, num_in, dtype=dtype, seed=2) / num_in**0.5
    bias = randn(num_out, dtype=dtype, seed=3) if with_bias else None
    expected = linear.reference.linear(weight, bias)(x)
    assert_close(VERSIONS[version](weight.clone(), bias)(x), expected)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_one_packed_weight_serves_any_number_of_tokens(case):
    version, dtype = case
    weight = randn(48, 32, dtype=dtype, seed=2) / 32**0.5
    apply, expected = VERSIONS[version](weight, None), linear.reference.linear(weight, None)
    for num_tokens in (1, 31, 32, 33, 257):
        x = randn(num_tokens, 32, dtype=dtype, seed=num_tokens)
        assert_close(apply(x), expected(x))
        if version != "torch":  # a row's result depends on no other row
            assert torch.equal(apply(x)[-1], apply(x[-1:])[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_reference_is_the_matrix_product(dtype):
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([0.5, -1.0])
    y = linear.reference.linear(weight.to(dtype), bias.to(dtype))(x.to(dtype))
    assert y.tolist() == [[11.5, 16.0]]
    assert y.dtype is dtype


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", WIDE)
def test_a_weight_in_fp32_is_computed_with_in_fp32(version, dtype, shape):
    num_tokens, num_in, num_out = shape
    x, weight = randn(num_tokens, num_in, dtype=dtype, seed=1), randn(num_out, num_in, dtype=torch.float32, seed=2)
    bias = randn(num_out, dtype=torch.float32, seed=3)
    y = WIDE[version](weight.clone(), bias)(x)
    assert y.dtype is torch.float32
    assert_close(y, linear.reference.linear(weight, bias, torch.float32)(x))


@pytest.mark.parametrize("version", NATIVES)
def test_sums_can_be_had_unrounded(version):
    """Of bf16 weights, as logits are wanted."""
    x, weight = randn(9, 70, dtype=torch.bfloat16, seed=1), randn(33, 70, dtype=torch.bfloat16, seed=2)
    assert_close(
        NATIVES[version](weight, None, out_dtype=torch.float32)(x),
        linear.reference.linear(weight, None, torch.float32)(x),
    )

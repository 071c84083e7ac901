import pytest
import torch

from kernels import linear, linear_int8, mlp, silu_mul
from kernels.backends import NativeOps
from kernels.linear_int8 import Input, QuantizedWeight, StaticInput, quantize_weight
from tests.kernels.compare import DTYPES, assert_close, dtype_id, natives, randn

NATIVE = natives(lambda gate_up, down, dtype: NativeOps(dtype).mlp(gate_up, down))


def reference_linear(weight, bias):
    if isinstance(weight, QuantizedWeight):
        return linear_int8.reference.linear_int8(weight, bias)
    return linear.reference.linear(weight, bias)


def weights(hidden, inter, dtype):
    return randn(2 * inter, hidden, dtype=dtype, seed=1) / 8, randn(hidden, inter, dtype=dtype, seed=2) / 8


def both(version, dtype, x, gate_up, down):
    expected = mlp.reference.mlp(reference_linear, silu_mul.reference.silu_mul, gate_up, down)
    return expected(x), NATIVE[version](gate_up, down, dtype)(x)


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("num_tokens", [1, 3, 70])
@pytest.mark.parametrize(("hidden", "inter"), [(64, 32), (50, 24)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", NATIVE)
def test_matches_the_composed_one(version, dtype, hidden, inter, num_tokens, biased):
    gate_up, down = weights(hidden, inter, dtype)
    biases = (randn(2 * inter, dtype=dtype), randn(hidden, dtype=dtype)) if biased else (None, None)
    x = randn(num_tokens, hidden, dtype=dtype, seed=3)
    expected, actual = both(version, dtype, x, (gate_up, biases[0]), (down, biases[1]))
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "kinds",
    [(Input.DYNAMIC,) * 2, (StaticInput(0.04, 120),) * 2, (Input.FLOAT, Input.DYNAMIC), (None, Input.DYNAMIC)],
    ids=str,
)
@pytest.mark.parametrize("version", NATIVE)
def test_each_kind_of_weight_is_computed_as_it_says(version, kinds):
    pairs = zip(weights(64, 32, torch.bfloat16), kinds, strict=True)
    gate_up, down = [weight if kind is None else quantize_weight(weight, kind) for weight, kind in pairs]
    x = randn(9, 64, dtype=torch.bfloat16, seed=3)
    expected, actual = both(version, torch.bfloat16, x, (gate_up, None), (down, None))
    assert ((actual - expected).abs().max() / expected.abs().max()).item() < 0.03


@pytest.mark.parametrize("version", NATIVE)
def test_more_and_fewer_tokens_by_turns(version):
    gate_up, down = ((weight, None) for weight in weights(64, 32, torch.bfloat16))
    run = NATIVE[version](gate_up, down, torch.bfloat16)
    x = randn(40, 64, dtype=torch.bfloat16)
    whole = run(x)
    for count in (1, 39, 2, 40):
        assert torch.equal(run(x[:count]), whole[:count])

import functools

import pytest
import torch

from kernels import draw
from tests.kernels.compare import DTYPES, NATIVE, dtype_id, natives, randn

VERSIONS = {"torch": draw.torch_ops.draw, **natives(NATIVE.draw)}
ALL = {"reference": draw.reference.draw, **VERSIONS}
TEMPERATURES = [0.0, 0.3, 1.0, 5.0] * 10
UNIFORMS = [0.0, 0.0, 1 - 2**-53, *torch.rand(37, generator=torch.Generator().manual_seed(1)).tolist()]


@functools.cache
def make_case(size, dtype):
    """Logits, and the tokens that the reference draws of them."""
    logits = randn(40, size, dtype=dtype) * 3
    return logits, draw.reference.draw(logits, TEMPERATURES, UNIFORMS)


@pytest.mark.parametrize("size", [1, 5, 16, 255, 256, 257, 1000, 49153])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_matches_reference(version, dtype, size):
    """But for what is drawn at the edge between two tokens, where rounding decides."""
    logits, expected = make_case(size, dtype)
    actual = VERSIONS[version](logits, TEMPERATURES, UNIFORMS)
    different = [i for i in range(40) if actual[i] != expected[i]]
    assert len(different) <= (1 if size > 1000 else 0)
    for i in different:
        running = (logits[i].double() / TEMPERATURES[i]).softmax(-1).cumsum(-1)
        assert abs(float(running[min(actual[i], expected[i])]) - UNIFORMS[i]) < 1e-6


@pytest.mark.parametrize("version", ALL)
def test_greedy_takes_the_first_of_the_largest(version):
    logits = torch.zeros(3, 40)
    logits[0, [7, 30]] = 2.0
    logits[1] = -5.0
    logits[2, 39] = 1e-3
    assert ALL[version](logits, [0.0] * 3, [0.5] * 3) == [7, 0, 39]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 17, 99])
@pytest.mark.parametrize("version", ALL)
def test_a_row_that_is_not_finite_has_no_token_and_spoils_no_other(version, at, bad):
    logits = randn(4, 100, dtype=torch.float32)
    expected = ALL[version](logits, [0.0, 1.0, 1.0, 0.0], [0.3] * 4)
    logits[1, at] = logits[3, at] = bad
    assert ALL[version](logits, [0.0, 1.0, 1.0, 0.0], [0.3] * 4) == [expected[0], -1, expected[2], -1]


@pytest.mark.parametrize("version", ALL)
def test_a_token_s_share_of_the_uniforms_is_its_probability(version):
    logits = torch.tensor([0.4, 0.1, 0.2, 0.3]).log()
    uniforms = [(i + 0.5) / 1000 for i in range(1000)]
    tokens = ALL[version](logits.expand(1000, -1), [1.0] * 1000, uniforms)
    assert tokens == [0] * 400 + [1] * 100 + [2] * 200 + [3] * 300


@pytest.mark.parametrize("version", VERSIONS)
def test_neither_the_smallest_nor_the_largest_logits_overflow(version):
    logits = torch.tensor([[3e38, -3e38, 0.0], [-3e38, -3e38, -2.9e38], [0.0, 88.0, 1e4]])
    for temperature in (1e-5, 1.0, 100.0):
        assert ALL[version](logits, [temperature] * 3, [0.9] * 3) == [0, 2, 2]

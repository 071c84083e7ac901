import pytest
import torch

from kernels import rms_norm
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

VERSIONS = {"torch": rms_norm.torch_ops.rms_norm, **natives(NATIVE.rms_norm)}
SHAPES = [(1, 64), (5, 1), (3, 63), (17, 576), (2, 1025)]
EPS = 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_rms_norm_matches_reference(version, dtype, shape):
    x, weight = randn(*shape, dtype=dtype) * 3, randn(shape[1], dtype=dtype, seed=1)
    before = x.clone()
    assert_close(VERSIONS[version](x, weight, EPS), rms_norm.reference.rms_norm(x, weight, EPS))
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_add_rms_norm_matches_reference_and_adds_to_the_residual_in_place(version, dtype, shape):
    x, weight = randn(*shape, dtype=dtype), randn(shape[1], dtype=dtype, seed=1)
    residual = randn(*shape, dtype=torch.float32, seed=2)
    total, expected_residual, x_before = residual + x, residual.clone(), x.clone()
    expected = rms_norm.reference.rms_norm(x, weight, EPS, expected_residual)

    assert_close(VERSIONS[version](x, weight, EPS, residual), expected)
    assert torch.equal(residual, total)
    assert torch.equal(expected_residual, total)
    assert torch.equal(x, x_before)


@pytest.mark.parametrize("version", VERSIONS)
def test_rows_of_the_residual_are_normed_as_they_are(version):
    residual, weight = randn(3, 63, dtype=torch.float32), randn(63, dtype=torch.bfloat16, seed=1)
    y, before = VERSIONS[version](residual, weight, EPS), residual.clone()
    assert y.dtype is torch.bfloat16
    assert_close(y, rms_norm.reference.rms_norm(residual, weight, EPS))
    assert torch.equal(residual, before)


@pytest.mark.parametrize("version", VERSIONS)
def test_rows_of_a_wider_tensor_are_read_right(version):
    wide, weight = randn(12, 100, dtype=torch.float32), randn(40, dtype=torch.float32, seed=1)
    x = wide[:, 30:70]
    expected = rms_norm.reference.rms_norm(x.contiguous(), weight, EPS)
    assert_close(VERSIONS[version](x, weight, EPS), expected)


@pytest.mark.parametrize("version", ["reference", *VERSIONS])
def test_eps_keeps_a_row_of_zeros_finite(version):
    kernel = rms_norm.reference.rms_norm if version == "reference" else VERSIONS[version]
    x = torch.zeros(2, 24)
    assert torch.equal(kernel(x, torch.ones(24), EPS), x)


def test_reference_by_hand():
    y = rms_norm.reference.rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(y, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)

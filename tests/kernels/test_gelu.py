import math

import pytest
import torch

from kernels import gelu
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

VERSIONS = {"torch": gelu.torch_ops.gelu, **natives(NATIVE.gelu)}


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (17, 65), (2, 409)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_gelu_matches_reference(version, dtype, shape):
    x = randn(shape[0], shape[1] + 3, dtype=dtype)[:, 3:] * 3  # a view
    before = x.clone()
    assert_close(VERSIONS[version](x), gelu.reference.gelu(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("version", ["reference", *VERSIONS])
def test_error_is_near_a_millionth_at_most(version):
    kernel = gelu.reference.gelu if version == "reference" else VERSIONS[version]
    x = torch.linspace(-8, 8, 40_001)[None]
    exact = torch.tensor([[value * math.erfc(-value / math.sqrt(2)) / 2 for value in x[0].tolist()]])
    assert (kernel(x) - exact).abs().max() < (2e-6 if version in ("reference", "torch") else 1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_large_values_and_nan(version):
    x = torch.tensor([[1e30, -1e30, 0.0, float("nan")]])
    y = VERSIONS[version](x)
    assert y[0, :3].tolist() == [x[0, 0], 0.0, 0.0]
    assert y.isnan().tolist() == [[False, False, False, True]]

import pytest
import torch

from kernels import head_linear
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

VERSIONS = {"torch": head_linear.torch_ops.head_linear, **natives(NATIVE.head_linear)}


@pytest.mark.parametrize("shape", [(1, 16, 128, 512), (32, 3, 512, 128), (70, 2, 40, 24), (5, 1, 17, 130)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_matches_reference_from_views_into_views(version, dtype, shape):
    num_tokens, num_heads, num_in, num_out = shape
    x = randn(num_tokens, num_heads, num_in + 7, dtype=dtype)[..., 7:]
    weight = randn(num_heads, num_in, num_out, dtype=dtype, seed=1) / num_in**0.5
    wide = randn(num_tokens, num_heads, num_out + 9, dtype=dtype, seed=2)
    expected, actual = wide.clone(), wide.clone()
    head_linear.reference.head_linear(weight)(x, expected[..., :num_out])
    VERSIONS[version](weight.clone())(x, actual[..., :num_out])

    assert_close(actual, expected)
    assert torch.equal(actual[..., num_out:], wide[..., num_out:])


@pytest.mark.parametrize("version", ["reference", *VERSIONS])
def test_some_of_the_heads(version):
    pack = head_linear.reference.head_linear if version == "reference" else VERSIONS[version]
    weight, x = randn(5, 24, 40, dtype=torch.float32), randn(7, 1, 24, dtype=torch.float32)
    out, expected = torch.empty(7, 2, 40), torch.einsum("tk,nkm->tnm", x[:, 0], weight[2:4])
    pack(weight.clone())(x.expand(7, 2, 24), out, first=2)
    assert_close(out, expected)


def test_reference_is_a_product_for_each_head():
    x, weight = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[1.0], [10.0]], [[2.0], [100.0]]])
    out = torch.empty(1, 2, 1)
    head_linear.reference.head_linear(weight)(x, out)
    assert out.tolist() == [[[21.0], [406.0]]]

import pytest
import torch
import torch.nn.functional as F

from kernels import causal_attention
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

VERSIONS = {"torch": causal_attention.torch_ops.causal_attention, **natives(NATIVE.causal_attention)}


def make(num_queries, context_len, heads, dim, value_dim, dtype):
    """Queries, keys and values as views of wider tensors, as the model passes."""
    q = randn(num_queries, heads, dim + 3, dtype=dtype)[..., 3:]
    k = randn(context_len, heads + 1, dim, dtype=dtype, seed=1)[:, 1:]
    return q, k, randn(heads, context_len, value_dim, dtype=dtype, seed=2).transpose(0, 1)


@pytest.mark.parametrize("lens", [(1, 1), (1, 70), (17, 17), (64, 300), (300, 300), (200, 1000)], ids=str)
@pytest.mark.parametrize(("heads", "dim", "value_dim"), [(2, 192, 128), (3, 40, 24), (1, 17, 33)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_matches_reference(version, dtype, heads, dim, value_dim, lens):
    case = make(*lens, heads, dim, value_dim, dtype)
    expected = causal_attention.reference.causal_attention(*case, dim**-0.5)
    assert_close(VERSIONS[version](*case, dim**-0.5), expected)


def test_reference_matches_torch_s_own():
    q, k, v = make(9, 30, 2, 16, 16, torch.float32)
    mask = torch.ones(9, 30, dtype=torch.bool).tril(21)
    heads_first = (x.transpose(0, 1) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=0.3).transpose(0, 1)
    torch.testing.assert_close(causal_attention.reference.causal_attention(q, k, v, 0.3), expected)

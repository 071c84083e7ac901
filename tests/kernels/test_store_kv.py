import pytest
import torch

from kernels import store_kv
from tests.kernels.compare import DTYPES, dtype_id, randn


def slots(num_tokens: int, num_blocks: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    flat = torch.randperm(num_blocks * block_size, generator=torch.Generator().manual_seed(3))[:num_tokens]
    return flat // block_size, flat % block_size


@pytest.mark.parametrize("block_size", [1, 7, 16])
@pytest.mark.parametrize(("num_tokens", "num_heads", "head_dim"), [(1, 1, 16), (13, 3, 64), (20, 2, 5)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_store_kv_matches_reference(dtype, num_tokens, num_heads, head_dim, block_size):
    num_blocks = -(-num_tokens // block_size) + 2
    blocks, offsets = slots(num_tokens, num_blocks, block_size)
    x = randn(num_tokens, num_heads + 2, head_dim, dtype=dtype)[:, 1:-1]  # a view, as the model passes
    cache = randn(num_blocks, num_heads, block_size, head_dim, dtype=dtype, seed=1)
    expected, before = cache.clone(), cache.clone()
    store_kv.reference.store_kv(x, expected, blocks, offsets)
    store_kv.torch.store_kv(x, cache, blocks, offsets)

    assert torch.equal(cache, expected)
    assert torch.equal(cache[blocks, :, offsets], x)
    written = torch.zeros(num_blocks, block_size, dtype=torch.bool)
    written[blocks, offsets] = True
    assert torch.equal(cache.transpose(1, 2)[~written], before.transpose(1, 2)[~written])

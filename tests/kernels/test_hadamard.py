import pytest
import torch

from kernels import hadamard
from tests.kernels.compare import natives, randn


@pytest.mark.parametrize("block", [16, 128, 512])
def test_a_rotation_is_a_product_with_a_hadamard_matrix(block):
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    x = randn(3, 2 * block, dtype=torch.float32)
    expected = (x.double().unflatten(1, (2, block)) @ matrix).flatten(1)
    torch.testing.assert_close(hadamard.reference.rotate(x, block).double(), expected, rtol=1e-5, atol=1e-4)
    for rotate in natives(hadamard.rotate).values():
        assert torch.equal(rotate(x, block), hadamard.reference.rotate(x, block))
    assert [hadamard.block_size(size) for size in (17, 24, 48, 576, 1536, 4096)] == [1, 1, 16, 64, 512, 512]

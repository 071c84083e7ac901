import pytest
import torch

from kernels import rotary
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

VERSIONS = {"torch": rotary.torch_ops.rotary, **natives(NATIVE.rotary)}


def tables(positions: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = positions[:, None].float() * 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 5, 16), (7, 12, 64), (2, 3, 128), (33, 4, 6), (2, 1, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_rotary_matches_reference(version, dtype, shape):
    x = randn(*shape, dtype=dtype)
    cos, sin = tables(torch.arange(shape[0]) * 37 % 501, shape[2])
    before = x.clone()
    assert_close(VERSIONS[version](x, cos, sin), rotary.reference.rotary(x, cos, sin))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_rotary_takes_views_of_a_wider_tensor(version, dtype):
    qkv = randn(10, 9, 32, dtype=dtype)
    cos, sin = tables(torch.arange(10), 16)
    for x in (qkv[:, :6, :16], qkv.view(10, 18, 16)[:, :12]):  # heads apart; heads together, as the model passes
        expected = rotary.reference.rotary(x.contiguous(), cos, sin)
        assert_close(VERSIONS[version](x, cos, sin), expected)


def test_reference_turns_each_pair_by_the_angle_of_its_position():
    x, positions = randn(4, 2, 8, dtype=torch.float32), torch.tensor([0, 1, 5, 300])
    y = rotary.reference.rotary(x, *tables(positions, 8))
    angles = positions[:, None, None] * 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(y, torch.cat([turned.real, turned.imag], -1))
    torch.testing.assert_close(y[0], x[0])

"""Operations with a backward pass of their own, against finite differences and plain torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from training.model.grouped_mlp import grouped_mlp
from training.model.layers import RMSNorm
from training.model.rotary import RotaryTables, rotate


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_rms_norm():
    norm, x = RMSNorm(8, 1e-3).double(), numbers(2, 3, 8)
    norm.weight.data.normal_()
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-3))
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, x), (x, norm.weight)
    )


def test_rms_norm_computes_in_fp32_and_gives_products_their_dtype():
    norm, x = RMSNorm(256, 1e-6), 1000 + torch.randn(4, 256)
    exact = norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), exact.bfloat16())
    low = x.bfloat16()
    assert torch.equal(norm(low), norm(low.float()).bfloat16())


def test_rotation():
    angles = torch.rand(5, 1, 4, dtype=torch.float64).repeat(1, 1, 2)
    sin = angles.sin() * torch.tensor([-1.0] * 4 + [1.0] * 4)
    tables, x = RotaryTables(angles.cos(), sin), numbers(2, 5, 3, 8)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angles[..., :4])
    torch.testing.assert_close(rotate(x, tables), torch.cat([pairs.real, pairs.imag], -1))
    assert torch.autograd.gradcheck(lambda x: rotate(x, tables), x)


@pytest.mark.parametrize("counts", [(5, 0, 9, 6), (0, 0, 0, 0), (20, 0, 0, 0), (3, 4, 5, 8)])
def test_grouped_mlp(counts):
    """Also with experts that have no rows, and with one row behind the last expert."""
    x = numbers(sum(counts) + 1, 8)
    experts = [(numbers(6, 8), numbers(6, 8), numbers(8, 6)) for _ in counts]
    y = grouped_mlp(x, counts, experts)
    parts = [
        (F.silu(rows @ gate.T) * (rows @ up.T)) @ down.T
        for rows, (gate, up, down) in zip(x.split([*counts, 1]), experts, strict=False)
    ]
    torch.testing.assert_close(y, torch.cat([*parts, torch.zeros(1, 8, dtype=torch.float64)]))
    flat = [weight for expert in experts for weight in expert]

    def compute(x, *weights):
        return grouped_mlp(x, counts, [weights[i : i + 3] for i in range(0, len(weights), 3)])

    assert torch.autograd.gradcheck(compute, (x, *flat))

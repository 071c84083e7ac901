import pytest
import torch

from kernels import silu_mul
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn

VERSIONS = {"torch": silu_mul.torch_ops.silu_mul, **natives(NATIVE.silu_mul)}


@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (17, 130), (2, 3072)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_silu_mul_matches_reference(version, dtype, shape):
    gate_up = randn(*shape, dtype=dtype) * 4
    before = gate_up.clone()
    assert_close(VERSIONS[version](gate_up), silu_mul.reference.silu_mul(gate_up))
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize("version", VERSIONS)
def test_large_gates_neither_overflow_nor_vanish(version):
    gate = torch.tensor([-1000.0, -100.0, -88.0, -87.5, -30.0, 0.0, 30.0, 88.0, 100.0, 1000.0])
    gates = gate.repeat(5)[None]  # more than a vector register, and a rest
    gate_up = torch.cat([gates, torch.full_like(gates, 2.0)], dim=-1)
    assert_close(VERSIONS[version](gate_up), silu_mul.reference.silu_mul(gate_up))


@pytest.mark.parametrize("version", ["reference", *VERSIONS])
def test_gate_is_the_first_half(version):
    kernel = silu_mul.reference.silu_mul if version == "reference" else VERSIONS[version]
    assert kernel(torch.tensor([[100.0, 0.0, 3.0, 5.0]])).tolist() == [[300.0, 0.0]]

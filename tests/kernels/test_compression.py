import pytest
import torch

from kernels import native
from kernels.backends import NativeOps, ReferenceOps, TorchOps
from kernels.linear_int8 import Input, StaticInput, quantize_weight
from kernels.native.capture import Graph, MemoryPool
from tests.kernels.compare import DTYPES, dtype_id, natives, randn

VERSIONS = {
    "torch": lambda *layers, dtype: TorchOps(dtype).compression(*layers),
    **natives(lambda *layers, dtype: NativeOps(dtype).compression(*layers)),
}
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def make_layers(hidden, size, dtype):
    encoder = randn(size, hidden, dtype=dtype, seed=1) * hidden**-0.5, randn(size, dtype=dtype, seed=2)
    decoder = randn(hidden, size, dtype=dtype, seed=3) * size**-0.5, randn(hidden, dtype=dtype, seed=4)
    norm = randn(hidden, dtype=torch.float32, seed=5), randn(hidden, dtype=torch.float32, seed=6)
    return encoder, decoder, norm


def inputs(num_tokens, hidden, dtype):
    return randn(num_tokens, hidden, dtype=dtype, seed=7), randn(num_tokens, hidden, dtype=torch.float32, seed=8)


def both(version, layers, x, residual):
    """What the reference and a version leave in the residual stream."""
    expected, actual, before = residual.clone(), residual.clone(), x.clone()
    ReferenceOps(x.dtype).compression(*layers)(x, expected)
    VERSIONS[version](*layers, dtype=x.dtype)(x, actual)
    assert torch.equal(x, before)
    return actual, expected


@pytest.mark.parametrize("num_tokens", [1, 3, 70])
@pytest.mark.parametrize(("hidden", "size"), [(64, 25), (50, 16), (7, 1), (1024, 409)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_matches_the_reference(version, dtype, hidden, size, num_tokens):
    actual, expected = both(version, make_layers(hidden, size, dtype), *inputs(num_tokens, hidden, dtype))
    torch.testing.assert_close(actual, expected, rtol=LIMITS[dtype], atol=LIMITS[dtype])


@pytest.mark.parametrize("kind", [Input.DYNAMIC, StaticInput(0.04, 120), Input.FLOAT], ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_weights_in_int8(version, kind):
    encoder, decoder, norm = make_layers(64, 25, torch.bfloat16)
    layers = (quantize_weight(encoder[0], kind), encoder[1]), (quantize_weight(decoder[0], kind), decoder[1]), norm
    actual, expected = both(version, layers, *inputs(9, 64, torch.bfloat16))
    assert ((actual - expected).abs().max() / expected.abs().max()).item() < 0.02


def test_reference_by_hand():
    """The encoder's output is 0, so that the stream is normed as it is, with the decoder's bias."""
    encoder, decoder = (torch.zeros(1, 2), torch.zeros(1)), (torch.ones(2, 1), torch.tensor([0.0, 2.0]))
    residual = torch.tensor([[3.0, 1.0]])
    layers = encoder, decoder, (torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))
    run = ReferenceOps(torch.float32).compression(*layers)
    run(torch.tensor([[1.0, 4.0]]), residual)
    torch.testing.assert_close(residual, torch.tensor([[-0.5, 2.0]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_row_is_computed_by_itself(version):
    layers = make_layers(64, 25, torch.bfloat16)
    x, residual = inputs(40, 64, torch.bfloat16)
    run, whole = VERSIONS[version](*layers, dtype=torch.bfloat16), residual.clone()
    run(x, whole)
    if version != "torch":
        for count in (1, 39, 2):
            part = residual[:count].clone()
            run(x[:count], part)
            assert torch.equal(part, whole[:count])


@pytest.mark.skipif(native.ISA is None, reason="the native kernels are not built")
def test_it_is_captured():
    run = NativeOps(torch.bfloat16).compression(*make_layers(64, 25, torch.bfloat16))
    x, residual = inputs(12, 64, torch.bfloat16)
    expected, captured, graph = residual.clone(), residual.clone(), Graph(MemoryPool(), 12)
    with graph.capture():
        run(x, captured)
    assert torch.equal(captured, residual)
    run(x, expected)
    graph.replay(5)
    assert torch.equal(captured[:5], expected[:5])
    assert torch.equal(captured[5:], residual[5:])

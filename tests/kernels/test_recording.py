"""Recorded calls of native functions do what the functions do, on whatever lies in their inputs."""

import gc

import pytest
import torch

from kernels import linear, native, rms_norm, silu_mul
from kernels.native.recording import Recorder, UnrecordableError
from tests.kernels.compare import randn

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built")
DTYPE = torch.bfloat16
HIDDEN = 64


@pytest.fixture(name="layers")
def make_layers():
    """Some layers' work, in native functions only: norm, a product, an activation, a product, many times."""
    norm, activate, pack = rms_norm.cpu.RMSNorm(DTYPE), silu_mul.cpu.bind(DTYPE), linear.cpu.bind(DTYPE)
    up = [pack(randn(2 * HIDDEN, HIDDEN, dtype=DTYPE, seed=i) / 8, None) for i in range(6)]
    down = [pack(randn(HIDDEN, HIDDEN, dtype=DTYPE, seed=50 + i) / 8, None) for i in range(6)]
    weight = torch.ones(HIDDEN, dtype=DTYPE)

    def run(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        for first, second in zip(up, down, strict=True):
            x = norm.add_rms_norm(x, residual, weight, 1e-5)
            x = second(activate(first(x.reshape(-1, HIDDEN).contiguous().to(DTYPE))))
        return x

    return run


def inputs(num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(num_tokens, HIDDEN, dtype=DTYPE, seed=seed), torch.zeros(num_tokens, HIDDEN)


def test_a_replay_computes_anew_from_what_lies_in_the_inputs(layers):
    x, residual = inputs(5, seed=1)
    recording, first = Recorder().record(lambda: layers(x, residual))
    assert torch.equal(first, layers(*inputs(5, seed=1)))
    for seed in (2, 3):
        x.copy_(inputs(5, seed)[0])
        residual.zero_()
        expected_residual = torch.zeros(5, HIDDEN)
        expected = layers(x.clone(), expected_residual)
        assert torch.equal(recording.replay(), expected)
        assert torch.equal(residual, expected_residual)


def test_recordings_of_one_recorder_share_memory_and_do_not_spoil_each_other(layers):
    recorder, recordings = Recorder(), {}
    for num_tokens in (40, 1, 7):
        x, residual = inputs(num_tokens, seed=num_tokens)
        recordings[num_tokens] = (recorder.record(lambda x=x, residual=residual: layers(x, residual))[0], x, residual)
    gc.collect()
    assert len(recorder._arena._free) == 1, "memory of tensors that are gone was not given back"
    for num_tokens in (7, 40, 1, 40):
        recording, x, residual = recordings[num_tokens]
        x.copy_(inputs(num_tokens, seed=9)[0])
        residual.zero_()
        garbage = torch.full((1000, HIDDEN), float("nan"))  # others' memory comes and goes
        assert torch.equal(recording.replay(), layers(*inputs(num_tokens, seed=9)))
        del garbage


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x + 1,
        lambda x: x.clone(),
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat([x, x])[: len(x)],
        lambda x: x.float().to(x.dtype),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: x.t().reshape(-1).view(x.shape),
        lambda x: x.add_(1),
    ],
    ids=["sum", "clone", "contiguous", "cat", "to", "index_select", "reshape", "in place"],
)
@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference mode"])
def test_what_torch_computes_is_found_out(layers, spoil, inference):
    with torch.inference_mode(inference):
        check_is_found_out(layers, spoil)


def check_is_found_out(layers, spoil):
    x, residual = inputs(5, seed=1)
    recorder = Recorder()
    with pytest.raises(UnrecordableError, match="aten::"):
        recorder.record(lambda: layers(spoil(layers(x, residual)), residual))
    x, residual = inputs(5, seed=1)
    _, first = recorder.record(lambda: layers(x, residual))  # and spoils nothing
    assert torch.equal(first, layers(*inputs(5, seed=1)))


def test_too_large_a_tensor_is_an_error_that_names_its_size(layers):
    with pytest.raises(UnrecordableError, match="no memory for a tensor of 4294967296 bytes"):
        Recorder().record(lambda: torch.empty(1 << 32, dtype=torch.uint8))


def test_nothing_is_noted_outside(layers):
    x, residual = inputs(3, seed=1)
    recording, _ = Recorder().record(lambda: layers(x, residual))
    count = len(recording._calls)
    layers(*inputs(3, seed=2))
    assert len(recording._calls) == count == 6 * 4

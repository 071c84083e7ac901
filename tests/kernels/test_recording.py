"""Recorded calls of native functions do what the functions do, on whatever lies in their inputs."""

import gc
import threading

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
    norm, activate, pack = rms_norm.native.RMSNorm(DTYPE), silu_mul.native.bind(DTYPE), linear.native.bind(DTYPE)
    up = [pack(randn(2 * HIDDEN, HIDDEN, dtype=DTYPE, seed=i) / 8, None) for i in range(6)]
    down = [pack(randn(HIDDEN, HIDDEN, dtype=DTYPE, seed=50 + i) / 8, None) for i in range(6)]
    weight = torch.ones(HIDDEN, dtype=DTYPE)

    def run(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        for first, second in zip(up, down, strict=True):
            x = norm.add_rms_norm(x, residual, weight, 1e-5)
            x = second(activate(first(x.reshape(-1, HIDDEN).contiguous().to(DTYPE))))
        return x

    return run


def inputs(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(num_rows, HIDDEN, dtype=DTYPE, seed=seed), torch.zeros(num_rows, HIDDEN)


MOST = 12  # rows of a recording


class Recorded:
    """Those layers, recorded, with the tensors that they read."""

    def __init__(self, layers, recorder):
        self.x, self.residual = torch.empty(MOST, HIDDEN, dtype=DTYPE), torch.empty(MOST, HIDDEN)
        self.recording = recorder.record(lambda n: layers(self.x[:n], self.residual[:n]), MOST)
        self._layers = layers

    def check(self, num_rows, seed):
        """A replay brings what the layers bring."""
        x, residual = inputs(num_rows, seed)
        self.x[:num_rows], self.residual[:num_rows] = x, residual
        assert torch.equal(self.recording.replay(num_rows), self._layers(x, residual))
        assert torch.equal(self.residual[:num_rows], residual)


def test_a_replay_computes_anew_from_what_lies_in_the_inputs_for_any_number_of_rows(layers):
    recorded = Recorded(layers, Recorder())
    for seed, num_rows in enumerate((5, MOST, 1, MOST - 1, 2, 5)):
        recorded.check(num_rows, seed)


def test_recording_makes_no_call(layers):
    nothing = torch.full((MOST, HIDDEN), 7.0, dtype=DTYPE)
    residual = torch.full((MOST, HIDDEN), 7.0)
    Recorder().record(lambda n: layers(nothing[:n], residual[:n]), MOST)
    assert (residual == 7).all()


def test_recordings_of_one_recorder_share_memory_and_leave_each_others_results(layers):
    recorder = Recorder()
    first, second = Recorded(layers, recorder), Recorded(layers, recorder)
    first.check(MOST, 1)
    result = first.recording.replay(3)
    expected = result.clone()
    second.check(MOST, 2)
    assert torch.equal(result, expected)
    garbage = torch.full((1000, HIDDEN), float("nan"))  # others' memory comes and goes
    first.check(5, 3)
    del first, second, result, garbage
    gc.collect()
    assert len(recorder._arena._free) == 1, "memory of tensors that are gone was not given back"


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
        recorder = Recorder()
        with pytest.raises(UnrecordableError, match="aten::"):
            Recorded(lambda x, residual: layers(spoil(layers(x, residual)), residual), recorder)
        Recorded(layers, recorder).check(5, 1)  # and spoils nothing


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda layers, x, residual: layers(x.as_strided(x.shape, (0, 1), len(x) // 2), residual), "row by row"),
        (lambda layers, x, residual: layers(layers(x, residual) if len(x) == MOST else x, residual), "other calls"),
        (lambda layers, x, residual: x if len(x) < 3 else layers(x, residual), "not the beginning"),
        (lambda layers, x, residual: layers(x[: len(x) // 2 * 2], residual), "not the beginning"),
        (lambda layers, x, residual: x.new_empty(2 * MOST, HIDDEN)[len(x) :][: len(x)], "not the beginning"),
    ],
    ids=["another place", "more calls", "another result", "fewer rows", "elsewhere"],
)
def test_what_depends_otherwise_on_the_number_of_rows_is_found_out(layers, spoil, message):
    with pytest.raises(UnrecordableError, match=message):
        Recorded(lambda x, residual: spoil(layers, x, residual), Recorder())


def test_too_large_a_tensor_is_an_error_that_names_its_size(layers):
    with pytest.raises(UnrecordableError, match="no memory for a tensor of 4294967296 bytes"):
        Recorder().record(lambda n: torch.empty(n << 30, dtype=torch.uint8), 4)


def test_nothing_is_noted_outside(layers):
    recorded = Recorded(layers, Recorder())
    layers(torch.zeros(3, HIDDEN, dtype=DTYPE), torch.zeros(3, HIDDEN))
    assert len(recorded.recording) == 6 * 4


def test_another_threads_calls_are_made_while_one_records(layers):
    """And what both record is each one's own."""
    recorded, results = [], []
    expected = layers(*inputs(3, seed=1))

    def record():
        recorded.append(Recorded(layers, Recorder()))

    def compute():
        results.extend(layers(*inputs(3, seed=1)) for _ in range(20))

    threads = [threading.Thread(target=task) for task in (record, compute) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 60
    assert all(torch.equal(result, expected) for result in results)
    for one in recorded:
        assert len(one.recording) == 6 * 4
        one.check(5, 1)

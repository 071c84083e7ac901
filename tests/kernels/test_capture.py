"""Replayed graphs do what the captured calls do, on whatever lies in their inputs."""

import gc
import threading

import pytest
import torch

from kernels import native, paged_attention
from kernels.native.capture import Graph, MemoryPool, NotCapturableError
from kernels.paged_attention.native import NativeAttention
from tests.kernels.compare import NATIVE, randn

pytestmark = pytest.mark.skipif(native.ISA is None, reason="the native kernels are not built")
DTYPE = torch.bfloat16
HIDDEN = 64
MOST = 12  # rows of a captured step


@pytest.fixture(name="layers")
def make_layers():
    """Some layers' work, in native kernels only: norm, a product, an activation, a product, many times."""
    up = [NATIVE.linear(randn(2 * HIDDEN, HIDDEN, dtype=DTYPE, seed=i) / 8, None) for i in range(6)]
    down = [NATIVE.linear(randn(HIDDEN, HIDDEN, dtype=DTYPE, seed=50 + i) / 8, None) for i in range(6)]
    weight = torch.ones(HIDDEN, dtype=DTYPE)

    def run(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        for first, second in zip(up, down, strict=True):
            x = NATIVE.rms_norm(x, weight, 1e-5, residual)
            x = second(NATIVE.silu_mul(first(x.reshape(-1, HIDDEN).contiguous().to(DTYPE))))
        return x

    return run


def inputs(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(num_rows, HIDDEN, dtype=DTYPE, seed=seed), torch.zeros(num_rows, HIDDEN)


class Captured:
    """Layers, captured, with the tensors that they read."""

    def __init__(self, layers, pool=None):
        self.x, self.residual = torch.full((MOST, HIDDEN), 7.0, dtype=DTYPE), torch.full((MOST, HIDDEN), 7.0)
        self.graph = Graph(pool or MemoryPool(), MOST)
        with self.graph.capture():
            self.result = layers(self.x, self.residual)
        self._layers = layers

    def check(self, num_rows, seed):
        """A replay brings what the layers bring, and leaves other rows alone."""
        x, residual = inputs(num_rows, seed)
        self.x[:num_rows], self.residual[:num_rows] = x, residual
        others = self.residual[num_rows:].clone()
        self.graph.replay(num_rows)
        assert torch.equal(self.result[:num_rows], self._layers(x, residual))
        assert torch.equal(self.residual[:num_rows], residual)
        assert torch.equal(self.residual[num_rows:], others)


def test_a_replay_computes_anew_from_what_lies_in_the_inputs_for_every_number_of_rows(layers):
    captured = Captured(layers)
    assert len(captured.graph) == 6 * 4
    for seed, num_rows in enumerate((*range(1, MOST + 1), MOST, 5, 1)):
        captured.check(num_rows, seed)


def test_a_capture_computes_nothing(layers):
    assert (Captured(layers).residual == 7).all()


def test_a_graph_keeps_its_weights_and_inputs_alive():
    x, weight = randn(MOST, HIDDEN, dtype=DTYPE), torch.full((HIDDEN,), 3.0, dtype=DTYPE)
    expected = NATIVE.rms_norm(x, weight, 1e-5)
    graph = Graph(MemoryPool(), MOST)
    with graph.capture():
        y = NATIVE.rms_norm(x, weight, 1e-5)
    del x, weight
    gc.collect()
    garbage = [torch.full((MOST, HIDDEN), float("nan"), dtype=DTYPE) for _ in range(50)]
    graph.replay(MOST)
    assert torch.equal(y, expected)
    assert len(garbage) == 50


def test_graphs_of_one_pool_share_memory_and_leave_each_others_results(layers):
    pool = MemoryPool()
    first, second = Captured(layers, pool), Captured(layers, pool)
    first.check(MOST, 1)
    expected = first.result.clone()
    second.check(MOST, 2)
    assert torch.equal(first.result, expected)
    first.check(5, 3)
    # Of all the tensors in between, each takes memory that an earlier one left.
    assert sum(room for _, room in pool._free) == native.capture._POOL - 2 * MOST * HIDDEN * DTYPE.itemsize
    assert pool._free[-1][0] < 8 * MOST * 2 * HIDDEN * DTYPE.itemsize
    del first, second
    gc.collect()
    assert len(pool._free) == 1, "memory of tensors that are gone was not given back"


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
def test_what_torch_computes_is_refused(layers, spoil, inference):
    with torch.inference_mode(inference):
        pool = MemoryPool()
        with pytest.raises(NotCapturableError, match="aten::"):
            Captured(lambda x, residual: layers(spoil(layers(x, residual)), residual), pool)
        Captured(layers, pool).check(5, 1)  # and spoils nothing


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda layers, x, residual: layers(x[:-1], residual[:-1]), "on 11 rows, where there are 12,"),
        (lambda layers, x, residual: layers(x.view(-1, 32), residual), "shape"),
        (lambda layers, x, residual: NATIVE.draw(x, [0.0] * MOST, [0.0] * MOST), "draw"),
        (lambda layers, x, residual: NATIVE.causal_attention(*[x[None]] * 3, 1.0), "causal_attention"),
        (lambda layers, x, residual: NATIVE.linear(x, None), "packing a weight"),
        (lambda layers, x, residual: NATIVE.take_rows(x, torch.zeros(2, dtype=torch.int64)), "aten::"),
        (lambda layers, x, residual: torch.empty(4 << 30, dtype=torch.uint8), "a tensor of 4294967296 bytes"),
    ],
    ids=["fewer rows", "shape", "draw", "causal attention", "packing", "take_rows", "too large"],
)
def test_what_a_replay_could_not_do_is_refused(layers, spoil, message):
    with pytest.raises((NotCapturableError, ValueError), match=message):
        Captured(lambda x, residual: spoil(layers, x, residual))
    Captured(layers).check(3, 1)


def test_a_capture_inside_another_is_refused(layers):
    pool = MemoryPool()
    outer, inner = Graph(pool, MOST), Graph(pool, MOST)
    x, residual = inputs(MOST, 1)
    with outer.capture():
        with pytest.raises(NotCapturableError, match="inside another"), inner.capture():
            pass
        layers(x, residual)
    assert (len(outer), len(inner)) == (6 * 4, 0)


ROWS = 5  # behind take_rows, at most


@pytest.fixture(name="taking")
def capture_taking(layers):
    """Layers of tokens, then layers of some of their rows."""
    x, residual, rows = *inputs(MOST, 0), torch.zeros(ROWS, dtype=torch.int64)

    def step(x, residual, rows):
        y = layers(x, residual)
        taken = NATIVE.take_rows(residual, rows)
        return layers(NATIVE.take_rows(y, rows), taken)

    graph = Graph(MemoryPool(), MOST, ROWS)
    with graph.capture():
        result = step(x, residual, rows)
    return graph, result, x, residual, rows, step


@pytest.mark.parametrize(("num_tokens", "taken"), [(MOST, [3, 0, 11, 3, 7]), (4, [3]), (1, [0, 0]), (7, [])], ids=str)
def test_behind_take_rows_the_wanted_rows_alone_are_computed(taking, num_tokens, taken):
    graph, result, x, residual, rows, step = taking
    own_x, own_residual = inputs(num_tokens, seed=4)
    x[:num_tokens], residual[:num_tokens] = own_x, own_residual
    rows[: len(taken)] = torch.tensor(taken, dtype=torch.int64)
    graph.replay(num_tokens, len(taken))
    expected = step(own_x, own_residual, torch.tensor(taken, dtype=torch.int64))
    assert torch.equal(result[: len(taken)], expected)
    assert torch.equal(residual[:num_tokens], own_residual)


@pytest.mark.parametrize("counts", [(0,), (MOST + 1, 1), (MOST,), (MOST, -1), (MOST, ROWS + 1)], ids=str)
def test_numbers_of_rows_that_were_not_captured_are_refused(taking, counts):
    with pytest.raises(ValueError, match="num_"):
        taking[0].replay(*counts)


def test_rows_that_there_are_not_are_an_error_of_the_replay(taking):
    graph, _, _, _, rows, _ = taking
    rows[1] = MOST
    with pytest.raises(IndexError, match="rows_R"):
        graph.replay(MOST, 2)
    graph.replay(MOST, 1)


def test_num_rows_is_for_graphs_that_take_rows(layers):
    captured = Captured(layers)
    with pytest.raises(ValueError, match="take_rows"):
        captured.graph.replay(3, 3)
    rows = torch.zeros(MOST, dtype=torch.int64)
    with pytest.raises(NotCapturableError, match="without num_rows"):
        Captured(lambda x, residual: NATIVE.take_rows(x, rows))
    with pytest.raises(ValueError, match="captured once"), captured.graph.capture():
        pass


def test_captured_attention_follows_the_plan_that_its_own_is_assigned():
    attention, block_size = NativeAttention(), 16
    caches = [randn(8, 1, block_size, HIDDEN, dtype=DTYPE, seed=i) for i in (1, 2)]
    q = randn(MOST, 2, HIDDEN, dtype=DTYPE)

    def plan(query_lens, context_lens, tables):
        return attention.plan(
            paged_attention.AttentionBatch(query_lens, context_lens, tables, block_size, torch.device("cpu"))
        )

    own, graph = plan([1], [1], [[0]]), Graph(MemoryPool(), MOST)
    with graph.capture():
        out = attention.forward(q, *caches, own, 0.1)
    for lens in (([1], [30], [[3, 1]]), ([1, 1, 9], [17, 5, 40], [[6, 2], [0], [5, 4, 7]]), ([12], [12], [[7]])):
        step, num_tokens = plan(*lens), sum(lens[0])
        assert step.is_capturable
        own.assign(step)
        graph.replay(num_tokens)
        assert torch.equal(out[:num_tokens], attention.forward(q[:num_tokens], *caches, step, 0.1))
    with pytest.raises(ValueError, match="another number of tokens"):
        graph.replay(11)


def test_another_threads_calls_are_made_while_one_captures(layers):
    """And what both capture is each one's own."""
    captured, results = [], []
    expected = layers(*inputs(3, seed=1))

    def capture():
        captured.append(Captured(layers))

    def compute():
        results.extend(layers(*inputs(3, seed=1)) for _ in range(20))

    threads = [threading.Thread(target=task) for task in (capture, compute) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 60
    assert all(torch.equal(result, expected) for result in results)
    for one in captured:
        assert len(one.graph) == 6 * 4
        one.check(5, 1)

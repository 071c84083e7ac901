import pytest
import torch

from kernels import grouped_mlp, linear, silu_mul
from tests.kernels.compare import DTYPES, assert_close, dtype_id, natives, randn

VERSIONS = {"torch": lambda dtype: grouped_mlp.torch.pack, **natives(grouped_mlp.cpu.bind)}
NUM_EXPERTS = 6


def pack(version, hidden, dtype):
    """The experts, packed, and how often each of them was called."""
    gate_up = [randn(2 * 24, hidden, dtype=dtype, seed=i) / 8 for i in range(NUM_EXPERTS)]
    down = [randn(hidden, 24, dtype=dtype, seed=100 + i) / 8 for i in range(NUM_EXPERTS)]
    calls = []

    def counted(weight, bias):
        expert = len(calls)
        calls.append([])
        product = linear.reference.pack(weight, bias)

        def apply(x):
            calls[expert].append(len(x))
            return product(x)

        return apply

    make = grouped_mlp.reference.pack if version == "reference" else VERSIONS[version](dtype)
    return make(counted, silu_mul.reference.silu_mul, zip(gate_up, down, strict=True)), calls


def route(num_tokens, top_k, experts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.tensor(experts)[torch.randperm(len(experts), generator=generator)][:top_k]
                          for _ in range(num_tokens)])  # fmt: skip
    return chosen, torch.rand(num_tokens, top_k, generator=generator)


@pytest.mark.parametrize("experts", [range(6), [5], [0, 3, 4]], ids=["all", "the last", "some"])
@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 1), (2, 3), (40, 2)])
@pytest.mark.parametrize("hidden", [16, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("version", VERSIONS)
def test_matches_reference(version, dtype, hidden, num_tokens, top_k, experts):
    top_k = min(top_k, len(experts))
    x = randn(num_tokens, hidden, dtype=dtype)
    ids, weights = route(num_tokens, top_k, list(experts))
    expected = pack("reference", hidden, dtype)[0](x, ids, weights)
    assert_close(pack(version, hidden, dtype)[0](x, ids, weights), expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_chosen_expert_computes_its_tokens_at_once_and_the_others_nothing(version):
    apply, calls = pack(version, 16, torch.float32)
    ids = torch.tensor([[5, 2], [2, 0], [5, 2]])
    apply(randn(3, 16, dtype=torch.float32), ids, torch.ones(3, 2))
    # gate_up and down of an expert are packed one after the other
    assert calls == [[1], [1], [], [], [3], [3], [], [], [], [], [2], [2]]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_token_without_weight_gets_nothing_and_one_that_is_nan_spoils_no_other(version):
    apply, _ = pack(version, 16, torch.float32)
    x, (ids, weights) = randn(3, 16, dtype=torch.float32), route(3, 2, [1, 2])
    weights[0] = 0
    expected = apply(x, ids, weights)
    assert not expected[0].any()
    x[1] = float("nan")
    actual = apply(x, ids, weights)
    assert actual[1].isnan().all()
    assert_close(actual[2], expected[2])

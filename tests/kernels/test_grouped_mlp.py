import pytest
import torch

from kernels import block_linear, grouped_mlp, hadamard, linear, linear_int8, silu_mul
from kernels.block_weight import stack
from kernels.linear_int8 import Input, QuantizedWeight, StaticInput, quantize_weight
from tests.kernels.compare import DTYPES, assert_close, dtype_id, natives, randn
from tests.support.blocks import random_weight

VERSIONS = {
    "torch": lambda *arguments, dtype: grouped_mlp.torch_ops.grouped_mlp(*arguments),
    **natives(grouped_mlp.native.grouped_mlp),
}
NUM_EXPERTS = 6
KINDS = {
    "numbers": lambda weight: weight,
    "dynamic": lambda weight: quantize_weight(weight, Input.DYNAMIC),
    "rotated": lambda weight: quantize_weight(weight, Input.DYNAMIC, hadamard.block_size(weight.shape[1])),
    "static": lambda weight: quantize_weight(weight, StaticInput(0.04, 120)),
    "weight only": lambda weight: quantize_weight(weight, Input.FLOAT),
}


def pack(version, hidden, dtype, kinds=("numbers",)):
    """The experts, packed, of several kinds by turns; and how often each of them was called."""
    gate_up = [randn(2 * 24, hidden, dtype=dtype, seed=i) / 8 for i in range(NUM_EXPERTS)]
    down = [randn(hidden, 24, dtype=dtype, seed=100 + i) / 8 for i in range(NUM_EXPERTS)]
    weights = [
        [KINDS[kinds[i % len(kinds)]](w) for w in pair] for i, pair in enumerate(zip(gate_up, down, strict=True))
    ]
    calls = []

    def counted(weight, bias):
        expert = len(calls)
        calls.append([])
        is_int8 = isinstance(weight, QuantizedWeight)
        product = (linear_int8.reference.linear_int8 if is_int8 else linear.reference.linear)(weight, bias)

        def apply(x):
            calls[expert].append(len(x))
            return product(x)

        return apply

    arguments = counted, silu_mul.reference.silu_mul, iter(weights)
    if version == "reference":
        return grouped_mlp.reference.grouped_mlp(*arguments), calls
    return VERSIONS[version](*arguments, dtype=dtype), calls


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


@pytest.mark.parametrize(
    "kinds",
    [
        ("dynamic",),
        ("rotated",),
        ("static",),
        ("weight only",),
        ("dynamic", "numbers", "rotated", "static", "weight only"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("num_tokens", [1, 2, 40])
@pytest.mark.parametrize(("hidden", "dtype"), [(50, torch.bfloat16), (64, torch.bfloat16), (50, torch.float32)])
@pytest.mark.parametrize("version", VERSIONS)
def test_int8_experts_match_reference(version, hidden, dtype, num_tokens, kinds):
    """Up to where rounding the inner activations to bf16 first makes another whole number of one."""
    x = randn(num_tokens, hidden, dtype=dtype)
    ids, weights = route(num_tokens, 3, list(range(6)))
    expected = pack("reference", hidden, dtype, kinds)[0](x, ids, weights)
    actual = pack(version, hidden, dtype, kinds)[0](x, ids, weights)
    assert ((actual - expected).abs().max() / expected.abs().max()).item() < (0.03 if dtype is torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_token_s_result_does_not_depend_on_the_others(version):
    for kinds in (("numbers",), ("dynamic",)):
        apply, _ = pack(version, 64, torch.bfloat16, kinds)
        x, (ids, weights) = randn(70, 64, dtype=torch.bfloat16), route(70, 3, list(range(6)))
        together = apply(x, ids, weights)
        for i in (0, 33, 69):
            assert torch.equal(apply(x[i : i + 1], ids[i : i + 1], weights[i : i + 1])[0], together[i])


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


def block_experts(version, input_, names, hidden=64, inter=96):
    """Experts in blocks of these formats: gate, up, down."""

    def expert(seed):
        gate, up = (random_weight(names[i], inter, hidden, input_, seed=3 * seed + i) for i in range(2))
        return stack([gate, up]), random_weight(names[2], hidden, inter, input_, seed=3 * seed + 2)

    def projection(weight, bias):
        return block_linear.reference.block_linear(weight, bias)

    experts = [expert(seed) for seed in range(NUM_EXPERTS)]
    if version == "reference":
        return grouped_mlp.reference.grouped_mlp(projection, silu_mul.reference.silu_mul, experts)
    return VERSIONS[version](projection, silu_mul.reference.silu_mul, experts, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "names", [("q4_0", "q4_0", "q4_0"), ("q4_0", "q4_0", "q8_0"), ("q4_0", "q8_0", "q8_0")], ids="-".join
)
@pytest.mark.parametrize("input_", Input)
@pytest.mark.parametrize("version", VERSIONS)
def test_experts_in_blocks_match_reference(version, input_, names):
    apply, reference = block_experts(version, input_, names), block_experts("reference", input_, names)
    for num_tokens in (1, 3, 40):
        x, (ids, weights) = randn(num_tokens, 64, dtype=torch.bfloat16), route(num_tokens, 3, list(range(6)))
        actual, expected = apply(x, ids, weights), reference(x, ids, weights)
        is_dynamic = input_ is Input.DYNAMIC and names[0] == names[1]  # gate and up want the same rows
        assert ((actual - expected).norm() / expected.norm()).item() < (0.01 if is_dynamic else 0.02)
        assert torch.equal(apply(x[-1:], ids[-1:], weights[-1:])[0], actual[-1])


@pytest.mark.parametrize("version", natives(grouped_mlp.native.grouped_mlp))
def test_experts_whose_gate_and_up_take_different_rows_compute_in_floats_and_say_so_once(version, caplog):
    grouped_mlp.native._tell_of_floats.cache_clear()
    names = ("q4_k", "q6_k", "q4_k")
    mixed, floats = (block_experts(version, input_, names, 256, 256) for input_ in (Input.DYNAMIC, Input.FLOAT))
    x, (ids, weights) = randn(3, 256, dtype=torch.bfloat16), route(3, 3, list(range(6)))
    assert torch.equal(mixed(x, ids, weights), floats(x, ids, weights))
    block_experts(version, Input.DYNAMIC, ("q4_k", "q5_k", "q6_k"), 256, 256)  # which share rows
    assert [line for line in caplog.messages if "inputs in floats" in line] == [
        "gate in q4_k and up in q6_k take inputs made int8 in different ways: these layers compute with inputs in "
        "floats, which is slower"
    ]

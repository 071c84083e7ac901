"""Linear layers of packed blocks: the reference against numpy, and the fast versions against the reference."""

import numpy as np
import pytest
import torch

from kernels import block_linear, embedding, native
from kernels.block_weight import FORMATS, stack
from kernels.native.capture import Graph, MemoryPool
from kernels.quantized_weight import Input
from kernels.resolve import BACKENDS
from tests.kernels.compare import DTYPES, NATIVE, assert_close, dtype_id, natives, randn
from tests.support.blocks import random_weight

REFERENCE = block_linear.reference.block_linear
NATIVES = natives(block_linear.native.block_linear)
IN_INTEGERS = [name for name, form in FORMATS.items() if form.group]
CASES = [(name, input_) for name in FORMATS for input_ in Input if name in IN_INTEGERS or input_ is Input.FLOAT]


def case_id(case: tuple[str, Input]) -> str:
    return f"{case[0]}-{case[1].value}"


def rounded(x: np.ndarray, group: int) -> np.ndarray:
    """The inputs on the grids of their groups, written a second time, in numpy."""
    made = np.zeros_like(x)
    for first in range(0, x.shape[1], group):
        part = x[:, first : first + group]
        largest = np.abs(part).max(1, keepdims=True)
        scale = np.where(largest == 0, 1, largest / np.float32(127))
        made[:, first : first + group] = np.rint(part / scale) * scale
    return made


@pytest.mark.parametrize("name", IN_INTEGERS)
def test_the_reference_is_the_product_of_rounded_inputs_and_values(name):
    weight, x = random_weight(name, 24, 512), randn(3, 512, dtype=torch.float32)
    values = weight.dequantize(torch.float32).double().numpy()
    expected = rounded(x.numpy(), FORMATS[name].group).astype(np.float64) @ values.T
    torch.testing.assert_close(REFERENCE(weight, None)(x).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_backends_agree_up_to_the_rounding_of_inputs(backend, dtype):
    weight = stack([random_weight("q4_k", 40, 256, seed=1), random_weight("q6_k", 24, 256, seed=2)])
    x, bias = randn(5, 256, dtype=dtype, seed=3), randn(64, dtype=dtype, seed=4)
    y = BACKENDS[backend](dtype).projection(weight, bias, torch.float32)(x)
    expected = REFERENCE(weight, bias, torch.float32)(x)
    assert ((y - expected).norm() / expected.norm()).item() < 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["q5_k", "fp8_128"])
def test_inputs_in_floats_lose_nothing(name, dtype):
    weight, x = random_weight(name, 40, 256, Input.FLOAT), randn(5, 256, dtype=dtype)
    y = REFERENCE(weight, None, torch.float32)(x)
    assert_close(y, x.float() @ weight.dequantize(torch.float32).T)


@pytest.mark.parametrize("version", ["reference", *NATIVES])
def test_a_row_of_zeros_gives_the_bias_and_one_that_is_not_finite_spoils_no_other(version):
    weight, bias = random_weight("q4_0", 8, 64), randn(8, dtype=torch.float32)
    x = randn(4, 64, dtype=torch.float32)
    x[1], x[2, 5], x[3, 40] = 0, float("nan"), float("inf")
    y = {"reference": REFERENCE, **NATIVES}[version](weight, bias, torch.float32)(x)
    assert torch.equal(y[1], bias)
    assert y[2:].isnan().all()
    assert_close(y[0], REFERENCE(weight, bias)(x[:1])[0])


@pytest.mark.parametrize(
    ("num_tokens", "in_size", "num_out", "dtype"),
    [(1, 512, 40, torch.bfloat16), (5, 256, 17, torch.float32), (33, 768, 7, torch.bfloat16)],
)
@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("isa", NATIVES)
def test_native_products_match_the_reference(isa, case, num_tokens, in_size, num_out, dtype):
    """In integers to the last bits of fp32; in floats up to the rounding of the values to bf16."""
    weight, x = random_weight(case[0], num_out, in_size, case[1]), randn(num_tokens, in_size, dtype=dtype)
    bias = randn(num_out, dtype=dtype, seed=3)
    y, expected = NATIVES[isa](weight, bias, torch.float32)(x), REFERENCE(weight, bias, torch.float32)(x)
    is_exact = case[1] is Input.DYNAMIC or dtype is torch.float32
    tolerance = 2e-6 if is_exact else 4e-3
    assert ((y - expected).norm() / expected.norm()).item() < tolerance
    assert_close(NATIVES[isa](weight, bias, dtype)(x), y.to(dtype))


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("isa", NATIVES)
def test_a_row_has_the_same_bits_however_many_are_computed_beside_it(isa, case):
    weight = random_weight(case[0], 40, 256, case[1])
    apply, x = NATIVES[isa](weight, None, torch.float32), randn(40, 256, dtype=torch.bfloat16)
    alone = torch.cat([apply(x[i : i + 1]) for i in range(len(x))])
    for num_rows in (*range(1, 19), 31, 32, 33, 40):
        assert torch.equal(apply(x[:num_rows]), alone[:num_rows])


@pytest.mark.parametrize("name", IN_INTEGERS)
@pytest.mark.parametrize("isa", NATIVES)
def test_the_largest_products_do_not_saturate(isa, name):
    """All bits of the codes are set, and all inputs are the largest, of either sign."""
    weight = random_weight(name, 16, 256)
    head = {"q6_k": 0, "q4_k": 16, "q5_k": 16, "mxfp4": 1, "q4_1": 4, "q5_1": 4}.get(name, 3 if "int4" in name else 2)
    codes = weight.rows_OB.unflatten(1, (-1, weight.format.bytes))[..., head:]
    (codes[..., :192] if name == "q6_k" else codes).fill_(127 if name in ("mxfp4", "q8_0") else 255)
    x = torch.ones(3, 256)
    x[1], x[2, ::2] = -1, -1
    expected = REFERENCE(weight, None)(x)
    torch.testing.assert_close(NATIVES[isa](weight, None, torch.float32)(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("isa", NATIVES)
def test_the_largest_scales_of_mxfp4_are_exact(isa):
    weight = random_weight("mxfp4", 40, 256)
    scales = weight.rows_OB.unflatten(1, (-1, weight.format.bytes))[..., 0]
    scales.random_(222, 233)
    apply = NATIVES[isa](weight, None, torch.float32)
    for num_rows in (1, 5, 20):
        x = randn(num_rows, 256, dtype=torch.float32)
        y, expected = apply(x).double(), REFERENCE(weight, None)(x).double()
        assert ((y - expected).norm() / expected.norm()).item() < 2e-6


@pytest.mark.parametrize("input_", Input)
@pytest.mark.parametrize("isa", NATIVES)
def test_parts_of_several_formats_are_one_product(isa, input_):
    names = "q4_0", "int4_128" if input_ is Input.DYNAMIC else "fp8_128", "q4_0"
    sizes = 33, 16, 5
    weight = stack([random_weight(name, size, 256, input_) for name, size in zip(names, sizes, strict=True)])
    x, bias = randn(9, 256, dtype=torch.bfloat16), randn(54, dtype=torch.float32)
    y, expected = NATIVES[isa](weight, bias, torch.float32)(x), REFERENCE(weight, bias, torch.float32)(x)
    assert ((y - expected).norm() / expected.norm()).item() < (2e-6 if input_ is Input.DYNAMIC else 4e-3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", NATIVES)
def test_rows_of_blocks_are_looked_up(isa, name):
    weight, ids = random_weight(name, 9, 512), torch.tensor([8, 0, 3, 0])
    x = natives(block_linear.native.embedding)[isa](weight, ids)
    torch.testing.assert_close(x, embedding.reference.embedding(weight, ids), rtol=1e-6, atol=1e-7)


def test_rows_that_do_not_exist_and_wrong_sizes_are_refused():
    weight = random_weight("q4_0", 9, 64)
    with pytest.raises(IndexError, match="token_ids_T must lie in 0 to 8"):
        NATIVE.embedding(weight, torch.tensor([9]))
    with pytest.raises(ValueError, match="rows_OB must have shape"):
        native.library.PackedBlocks(weight.rows_OB, "q8_0", 64, is_dynamic=True)
    with pytest.raises(ValueError, match="no such format"):
        native.library.PackedBlocks(weight.rows_OB, "q9_0", 64, is_dynamic=True)


def test_products_and_look_ups_are_replayed():
    table, most = random_weight("q4_0", 9, 64), 12
    weight = random_weight("q8_0", 40, 64)
    apply, ids = NATIVE.projection(weight, None), torch.zeros(most, dtype=torch.int64)

    def run(ids: torch.Tensor) -> torch.Tensor:
        return apply(NATIVE.embedding(table, ids))

    graph = Graph(MemoryPool(), most)
    with graph.capture():
        y = run(ids)
    for num_rows in (1, 12, 7):
        ids[:num_rows] = torch.randint(9, (num_rows,))
        graph.replay(num_rows)
        assert torch.equal(y[:num_rows], run(ids[:num_rows]))

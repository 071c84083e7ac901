"""Weights in blocks: what each format's bytes mean, rows, stacks."""

import struct

import numpy as np
import pytest
import torch

from kernels.block_weight import FORMATS, BlockWeight, MixedWeight, quantize_groups, stack
from kernels.quantized_weight import Input
from tests.kernels.compare import randn
from tests.support.blocks import HALVES, random_weight

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def nibbles(data: bytes) -> list[int]:
    """Low halves of all bytes, then high halves."""
    return [byte & 15 for byte in data] + [byte >> 4 for byte in data]


def e4m3(code: int) -> float:
    sign, exponent, fraction = code >> 7, code >> 3 & 15, code & 7
    value = (8 + fraction) / 8 * 2.0 ** (exponent - 7) if exponent else fraction / 8 * 2.0**-6
    return -value if sign else value


def written_out(name: str, block: bytes) -> list[float]:
    """The formats that are not ggml's, and one that is, in plain Python."""
    if name == "mxfp4":
        scale = 2.0 ** (block[0] - 127)
        return [(-1 if code & 8 else 1) * E2M1[code & 7] * scale for code in nibbles(block[1:])]
    if name == "fp8_128":
        return [struct.unpack("<f", block[:4])[0] * e4m3(code) for code in block[4:]]
    scale, zero = struct.unpack("<eB", block[:3])
    return [(code - zero) * scale for code in nibbles(block[3:])]


@pytest.mark.parametrize("name", ["mxfp4", "int4_32", "int4_64", "int4_128", "fp8_128"])
def test_values_are_those_that_the_layout_says(name):
    weight = random_weight(name, 3, 2 * FORMATS[name].values)
    size = FORMATS[name].bytes
    for row, values in zip(weight.rows_OB.numpy(), weight.dequantize(torch.float32).numpy(), strict=True):
        expected = [written_out(name, row[i : i + size].tobytes()) for i in (0, size)]
        np.testing.assert_allclose(values, np.concatenate(expected), rtol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_values_of_the_wanted_size(name):
    values = random_weight(name, 40, 512).dequantize(torch.float32)
    assert values.shape == (40, 512)
    assert 0.1 < values.std() * 512**0.5 < 10
    assert values.isfinite().all()


@pytest.mark.parametrize("name", ["int4_64", "fp8_128"])
def test_the_last_block_of_a_row_may_be_padded(name):
    weight = random_weight(name, 4, 200)
    assert weight.shape == (4, 200)
    assert weight.dequantize(torch.float32).shape == (4, 200)
    whole = BlockWeight(weight.rows_OB, weight.format, 256, weight.input).dequantize(torch.float32)
    assert not whole[:, 200:].any()


def test_rows_that_do_not_have_whole_blocks_are_a_mistake():
    with pytest.raises(AssertionError):
        BlockWeight(torch.zeros(2, 35, dtype=torch.uint8), FORMATS["q4_0"], 64, Input.DYNAMIC)


@pytest.mark.parametrize("name", FORMATS)
def test_a_scale_or_minimum_that_products_cannot_take_is_found(name):
    if name == "mxfp4":
        bad = [(0, bytes([233])), (0, bytes([255]))]  # 2^106, NaN
    elif name == "fp8_128":
        bad = [(0, struct.pack("<f", value)) for value in (np.nan, np.inf, -np.inf)]
    else:
        bad = [(place, struct.pack("<e", value)) for place in HALVES[name] for value in (np.nan, np.inf, -np.inf)]
    for place, data in bad:
        weight = random_weight(name, 9, 512)
        assert weight.has_usable_scales()
        block = weight.rows_OB.unflatten(1, (-1, weight.format.bytes))[7, 1]
        block[place : place + len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        assert not weight.has_usable_scales()


def test_rows_are_taken_in_any_order():
    weight, order = random_weight("q4_k", 9, 256), torch.tensor([8, 0, 0, 3])
    assert torch.equal(weight.rows(order).dequantize(torch.float32), weight.dequantize(torch.float32)[order])


def test_weights_of_one_format_are_stacked_to_one_and_others_to_parts():
    a, b = random_weight("q4_0", 3, 64, seed=1), random_weight("q4_0", 5, 64, seed=2)
    c = random_weight("q8_0", 4, 64, seed=3)
    both, mixed = stack([a, b]), stack([a, b, c])
    assert isinstance(both, BlockWeight)
    assert isinstance(mixed, MixedWeight)
    assert [part.format.name for part in mixed.parts] == ["q4_0", "q8_0"]
    assert mixed.shape == (12, 64)
    expected = torch.cat([part.dequantize(torch.float32) for part in (a, b, c)])
    assert torch.equal(both.dequantize(torch.float32), expected[:8])
    assert torch.equal(mixed.dequantize(torch.float32), expected)
    order = torch.tensor([2, 1, 11, 7, 8, 0])
    permuted = mixed.rows(order)
    assert torch.equal(permuted.dequantize(torch.float32), expected[order])
    assert [len(part.rows_OB) for part in permuted.parts] == [2, 1, 1, 1, 1]


def test_a_stack_with_one_input_in_floats_has_all_in_floats():
    dynamic, floats = random_weight("q4_0", 3, 64), random_weight("q8_0", 3, 64, Input.FLOAT)
    mixed = stack([dynamic, floats])
    assert isinstance(mixed, MixedWeight)
    assert {part.input for part in mixed.parts} == {Input.FLOAT}


def test_inputs_are_within_half_a_step_of_their_group():
    x = randn(3, 100, dtype=torch.float32)
    x[1, :32] = 0
    x[2, 40] = 1000
    x_q, scale = quantize_groups(x, 32)
    assert x_q.shape == (3, 4, 32)
    assert x_q.abs().amax(2).tolist() == [[127] * 4, [0, 127, 127, 127], [127] * 4]
    error = ((x_q * scale).flatten(1)[:, :100] - x).abs().unflatten(1, (-1, 20)).amax(2)
    assert (error <= scale.amax() * 0.501).all()
    assert (error[:2] <= scale[:2].amax() * 0.501).all()
    assert not x_q[:, 3, 4:].any()

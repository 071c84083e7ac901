"""Weights of 4 bits: what GPTQ gains on inputs that depend on each other, and where there are none."""

import subprocess
import sys

import pytest
import torch

from engine.quantization import gptq
from kernels.quantized_weight import Input
from kernels.round_to_blocks import round_to_blocks


@pytest.fixture(name="weight_OI")
def make_weight():
    return torch.randn(48, 96, generator=torch.Generator().manual_seed(0)) / 10


@pytest.fixture(name="x_TI")
def make_inputs():
    """Inputs of about 30 dimensions, and one that is always 0."""
    generator = torch.Generator().manual_seed(1)
    x_TI = torch.randn(400, 30, generator=generator) @ torch.randn(30, 96, generator=generator)
    x_TI += torch.randn(400, 96, generator=generator)
    x_TI[:, 7] = 0
    return x_TI


def loss(made, weight_OI, x_TI):
    return float((x_TI @ (made.dequantize(torch.float32) - weight_OI).T).square().sum())


def test_outputs_change_less_than_by_rounding_to_the_nearest(weight_OI, x_TI):
    hessian_II = gptq.hessian([x_TI[:100], x_TI[100:]], 96)
    torch.testing.assert_close(hessian_II, x_TI.T @ x_TI / 400)
    nearest = loss(round_to_blocks(weight_OI, "q4_0"), weight_OI, x_TI)
    assert loss(gptq.to_4_bits(weight_OI, hessian_II, Input.DYNAMIC), weight_OI, x_TI) < 0.4 * nearest


def test_fitted_scales_are_the_best_for_their_codes(weight_OI, x_TI):
    made = gptq.to_4_bits(weight_OI, gptq.hessian([x_TI], 96), Input.DYNAMIC)
    for block in (0, 18, 36):  # where a row's blocks, and their scales, begin
        for factor in (0.98, 1.02):
            rows_OB = made.rows_OB.clone()
            scale_O1 = rows_OB[:, block : block + 2].contiguous().view(torch.float16)
            rows_OB[:, block : block + 2] = (scale_O1 * factor).view(torch.uint8)
            other = type(made)(rows_OB, made.format, made.in_size, made.input)
            assert loss(other, weight_OI, x_TI) > loss(made, weight_OI, x_TI)


def test_without_any_text_values_are_rounded_to_the_nearest(weight_OI):
    made = gptq.to_4_bits(weight_OI, gptq.hessian([], 96), Input.FLOAT)
    nearest = round_to_blocks(weight_OI, "q4_0")
    change = made.dequantize(torch.float32) - nearest.dequantize(torch.float32)
    assert change.norm() < 0.02 * weight_OI.norm()
    assert made.input is Input.FLOAT


def test_rows_depend_on_no_other_rows(weight_OI, x_TI):
    hessian_II = gptq.hessian([x_TI], 96)
    whole = gptq.to_4_bits(weight_OI, hessian_II, Input.DYNAMIC).dequantize(torch.float32)
    some = gptq.to_4_bits(weight_OI[10:20], hessian_II, Input.DYNAMIC).dequantize(torch.float32)
    assert (whole[10:20] != some).float().mean() < 0.02  # products of another shape round otherwise


def test_a_scale_is_the_same_in_fp16_and_bf16(weight_OI):
    for made in (
        gptq.to_4_bits(weight_OI * 1e-4, gptq.hessian([], 96), Input.DYNAMIC),
        gptq.to_8_bits(weight_OI * 1e-4, Input.DYNAMIC),
    ):
        blocks = made.rows_OB.unflatten(1, (-1, made.format.bytes))
        scale = blocks[..., :2].contiguous().view(torch.float16)
        assert scale.abs().max() < 2**-14
        assert torch.equal(scale.bfloat16().half(), scale)


def test_8_bits_are_as_close_as_they_can_be(weight_OI):
    made = gptq.to_8_bits(weight_OI, Input.DYNAMIC).dequantize(torch.float32)
    largest = weight_OI.unflatten(1, (-1, 32)).abs().amax(2).repeat_interleave(32, 1)
    assert ((made - weight_OI).abs() <= 0.6 * largest / 127).all()


@pytest.mark.parametrize(("out_size", "in_size"), [(32, 1536), (1536, 768)])
def test_it_takes_about_the_memory_that_it_says(out_size, in_size):
    """In a process of its own, whose peak is its own."""
    source = f"""
import sys, torch
from pathlib import Path
from engine.quantization import gptq
from kernels.quantized_weight import Input

def size(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

def run(out_size, in_size):
    x, weight = torch.randn(600, in_size), torch.randn(out_size, in_size)
    Path("/proc/self/clear_refs").write_text("5")
    before = size("VmRSS")
    gptq.to_4_bits(weight, gptq.hessian([x], in_size), Input.FLOAT)
    return size("VmHWM") - before

torch.set_num_threads(1)
run(8, 64)
print(run({out_size}, {in_size}))
"""
    peak = int(subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout)
    assert 0.85 < peak / gptq.working_bytes(out_size, in_size) < 1.5

"""Calibration against transformers: the inputs of every linear layer."""

import pytest
import torch

from engine.loading.resolve import resolve_model
from engine.quantization.calibrate import calibrate
from kernels.linear_int8 import StaticInput
from tests.support import tiny
from tests.support.int8 import PROMPTS


def test_calibration_sees_the_inputs_that_transformers_computes(tiny_llama):
    source = resolve_model(str(tiny_llama))
    config = source.read_config()
    found = calibrate(source.open_tensors(config), config, PROMPTS, torch.float32, progress=False)
    model, seen = tiny.reference(tiny_llama), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, args, __, name=name: seen.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        for prompt in PROMPTS:
            model(torch.tensor([prompt]))
    assert {layer for item in found for layer in item.layers} == set(seen) - {"lm_head"}
    for item in found:
        for layer in item.layers:
            inputs = torch.cat([x.flatten() for x in seen[layer]])
            expected = StaticInput.over(float(inputs.min()), float(inputs.max()))
            assert item.grid.scale == pytest.approx(expected.scale, rel=1e-4)
            assert abs(item.grid.zero_point - expected.zero_point) <= 1

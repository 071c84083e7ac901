"""Measures each linear layer over calibration text: the range of inputs, the error of int8 outputs.

Shapes: T tokens of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.errors import ModelError
from engine.loading.name_list import name_list
from engine.quantization.layer_names import expert_parts
from engine.quantization.progress import shown
from engine.quantization.walk import LayerWalk
from kernels.linear_int8 import Input, StaticInput, quantize_for_dynamic_inputs, quantize_weight
from kernels.linear_int8 import torch_ops as linear_int8

if TYPE_CHECKING:
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from engine.quantization.walk import WatchedLayer

_MAX_MEASURED_ROWS = 256  # of one layer's inputs, evenly spaced


@dataclass(frozen=True)
class Measurement:
    """One linear layer as the model computes it.

    Attributes:
        layers: the checkpoint's layers that are stacked in it, because they read the same input. For routed experts,
            the layers of all experts of a decoder layer, so that an expert that no token chose has a range too.
        cost: multiplications for each token.
        grid: the static grid over the range of inputs.
        static_error, dynamic_error: |error|^2 / |output|^2 of the outputs, mean over tokens.
    """

    layers: tuple[str, ...]
    cost: float
    grid: StaticInput
    static_error: float
    dynamic_error: float


def calibrate(
    tensors: TensorSource, config: ModelConfig, prompts: list[list[int]], dtype: torch.dtype, *, progress: bool
) -> list[Measurement]:
    """Measure every linear layer that can be int8; each prompt is one sequence, computed in this dtype.

    Raises:
        ModelError: tensors are missing, do not fit the config, or are not finite.
    """
    walk = LayerWalk(tensors, config, prompts, dtype)
    num_tokens = sum(map(len, prompts))
    measurements: list[Measurement] = []
    with torch.inference_mode():
        numbers = range(config.num_hidden_layers)
        for number in shown(numbers, "calibrating", "layer", len(numbers), progress=progress):
            measurements += _measure(walk.advance(number), num_tokens)
    return measurements


def _measure(watched: list[WatchedLayer], num_tokens: int) -> list[Measurement]:
    """The measurements of one decoder layer."""
    sites: dict[tuple[str, ...], list[WatchedLayer]] = {}
    for item in watched:
        key = tuple(" ".join(expert_parts(layer) or (layer,)) for layer in item.layers)
        sites.setdefault(key, []).append(item)
    return [_measure_site(items, num_tokens) for items in sites.values()]


def _measure_site(items: list[WatchedLayer], num_tokens: int) -> Measurement:
    """The measurement of one linear layer, or of the same layer of all routed experts."""
    used = [item for item in items if item.inputs]
    ranges = [x.aminmax() for item in used for x in item.inputs if x.numel()]
    if not all(found.min.isfinite() and found.max.isfinite() for found in ranges):
        raise ModelError(f"{name_list(items[0].layers)} reads values that are infinite or no numbers")
    low = min((float(found.min) for found in ranges), default=-1.0)
    high = max((float(found.max) for found in ranges), default=1.0)
    grid = StaticInput.over(low, high)
    errors: dict[StaticInput | Input, list[torch.Tensor]] = {grid: [], Input.DYNAMIC: []}
    cost = 0.0
    for item in used:
        x_TI = torch.cat(item.inputs)
        cost += len(x_TI) / num_tokens * item.weight_OI.numel()
        rows = torch.linspace(0, len(x_TI) - 1, min(len(x_TI), max(1, _MAX_MEASURED_ROWS // len(used)))).long()
        x_TI = x_TI[rows].float()
        y_TO = x_TI @ item.weight_OI.float().T
        for input_, found in errors.items():
            weight = quantize_weight(item.weight_OI, input_)  # as it is stored
            if input_ is Input.DYNAMIC:
                weight = quantize_for_dynamic_inputs(weight)  # as it is served
            made_TO = linear_int8.linear_int8(weight, None)(x_TI)
            norm_T = y_TO.square().sum(1).clamp(min=1e-20)
            found.append(((made_TO - y_TO).square().sum(1) / norm_T).clamp(max=1.0))
    static, dynamic = (float(torch.cat(found).mean()) if found else 0.0 for found in errors.values())
    layers = tuple(layer for item in items for layer in item.layers)
    return Measurement(layers, cost, grid, static, dynamic)

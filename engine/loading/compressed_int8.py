"""Layers in int8 as compressed-tensors stores them (format int-quantized).

    weight             int8 [O, I]
    weight_scale       [O, 1]
    input_scale        [1]: of a static grid of inputs
    input_zero_point   [1], for int8 inputs: of a static grid, 0 without it

Shapes: O rows, I inputs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.loading.stored_dtypes import FLOATS, ZERO_POINTS
from kernels.linear_int8 import Input, QuantizedWeight, StaticInput

if TYPE_CHECKING:
    import torch

    from engine.loading.weights import Weights
    from engine.models.int8_scheme import Int8Scheme


def read(weights: Weights, layer: str, values_OI: torch.Tensor, scheme: Int8Scheme) -> QuantizedWeight | None:
    """The weight of a layer; None if what belongs to its values is missing or does not fit, which is noted."""
    scale_O1 = weights.take_scales(f"{layer}.weight_scale", (len(values_OI), 1))
    kind = scheme.input_kind(layer)
    if kind is None:
        weights.fault(f"{layer}.weight", "is int8, but in no group of quantization_config")
        return None
    input_ = _read_static_input(weights, layer) if kind == "static" else Input(kind)
    if scale_O1 is None or input_ is None:
        return None
    return QuantizedWeight(values_OI, scale_O1[:, 0].float(), input_)


def _read_static_input(weights: Weights, layer: str) -> StaticInput | None:
    stored, zero_name = weights.take_stored(f"{layer}.input_scale", (1,), dtypes=FLOATS), f"{layer}.input_zero_point"
    stored_zero = weights.take_stored(zero_name, (1,), dtypes=ZERO_POINTS) if weights.holds(zero_name) else None
    if stored is None:
        return None
    scale, zero = float(stored), 0 if stored_zero is None else int(stored_zero)
    if not -128 <= zero <= 127 or not 0 < scale < math.inf:
        weights.fault(f"{layer}.input_scale", f"and input_zero_point are {scale} and {zero}")
        return None
    return StaticInput(scale, zero + 128)  # the file's zero point is for int8 inputs, ours for uint8

"""An int8 weight, the kind of input that it is multiplied with, and quantisation to 8 bits."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kernels import hadamard

_VALUES_AT_ONCE = 1 << 22
_MIN_SCALE = 1e-30  # of a row; smaller values round to 0


class Input(enum.Enum):
    """The input of a linear layer without a static grid (StaticInput).

    DYNAMIC: each row is quantised to uint8 over its own range, extended to 0. FLOAT: the input stays in floats.
    """

    DYNAMIC = "dynamic"
    FLOAT = "float"


@dataclass(frozen=True, slots=True)
class StaticInput:
    """A uint8 grid known in advance: x is about scale * (x_q - zero_point), 0 <= zero_point <= 255."""

    scale: float
    zero_point: int

    @classmethod
    def over(cls, low: float, high: float) -> StaticInput:
        """The grid over a range, extended to 0. The grid represents 0 exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        return cls(scale, round(-low / scale))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value of the grid."""
        return -self.zero_point * self.scale, (255 - self.zero_point) * self.scale


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A symmetric int8 weight: values_OI * scale_O[:, None].

    Attributes:
        values_OI: int8, -127 to 127. A checkpoint may contain -128 too.
        scale_O: fp32, positive.
        input: how the layer's input is quantised.
        rotation: inputs that are rotated together (kernels.hadamard) before they are quantised, as the values are; 1:
            none are.
    """

    values_OI: torch.Tensor
    scale_O: torch.Tensor
    input: StaticInput | Input
    rotation: int = 1

    def __post_init__(self) -> None:
        assert self.rotation == 1 or self.input is Input.DYNAMIC, self.input

    @property
    def shape(self) -> torch.Size:
        """[O, I]."""
        return self.values_OI.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values_OI.nbytes

    @property
    def grid(self) -> tuple[float, int]:
        """Scale and zero point of the input; scale 0 where they are not known in advance."""
        return (self.input.scale, self.input.zero_point) if isinstance(self.input, StaticInput) else (0.0, 0)

    def rows(self, order: torch.Tensor | slice) -> QuantizedWeight:
        """The weight with these rows, in this order."""
        return replace(self, values_OI=self.values_OI[order], scale_O=self.scale_O[order])

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in floats, [O, I]."""
        weight_OI = self.values_OI * self.scale_O[:, None]
        return hadamard.rotate(weight_OI, self.rotation).to(dtype)


def quantize_weight(
    weight_OI: torch.Tensor | QuantizedWeight, input_: StaticInput | Input, rotation: int = 1
) -> QuantizedWeight:
    """Round a weight to int8; the largest absolute value of each row becomes 127. A row of zeros has scale 1.

    Rows are quantised in slices, to bound the temporary memory. `rotation` is the one of the result; a weight in int8
    is rounded a second time.
    """
    device = weight_OI.values_OI.device if isinstance(weight_OI, QuantizedWeight) else weight_OI.device
    values_OI = torch.empty(weight_OI.shape, dtype=torch.int8, device=device)
    scale_O = torch.empty(len(values_OI), device=device)
    num_rows = max(1, _VALUES_AT_ONCE // max(1, weight_OI.shape[1]))
    for first in range(0, len(values_OI), num_rows):
        rows = slice(first, first + num_rows)
        part = hadamard.rotate(_rows_of(weight_OI, rows), rotation)
        low, high = part.aminmax(dim=1)
        largest = torch.maximum(-low, high)
        step = torch.where(largest == 0, 1.0, largest / 127)
        scale_O[rows] = step / rotation
        values_OI[rows] = (part / step[:, None]).round_().clamp_(-127, 127)
    return QuantizedWeight(values_OI, scale_O, input_, rotation)


def quantize_for_dynamic_inputs(weight_OI: torch.Tensor | QuantizedWeight) -> QuantizedWeight:
    """The weight of a layer with dynamic inputs as it is served: rotated, in the largest blocks that its size has.

    The second rounding of a weight in int8 costs less than is lost of inputs that are not rotated.
    """
    return quantize_weight(weight_OI, Input.DYNAMIC, hadamard.block_size(weight_OI.shape[1]))


def _rows_of(weight: torch.Tensor | QuantizedWeight, rows: slice) -> torch.Tensor:
    return weight[rows] if isinstance(weight, torch.Tensor) else weight.rows(rows).dequantize(torch.float32)


def stack(weights: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """Stack the weights of layers that read the same input; None if their kinds of input or their rotations differ.

    Several static grids are replaced by one grid over all their ranges. One weight is handed back as it is.
    """
    if len(weights) == 1:
        return weights[0]
    inputs = {weight.input for weight in weights}
    grids = [input_ for input_ in inputs if isinstance(input_, StaticInput)]
    rotations = {weight.rotation for weight in weights}
    if len(rotations) > 1:
        return None
    if len(inputs) == 1:
        input_ = inputs.pop()
    elif len(grids) == len(inputs):
        lows, highs = zip(*(grid.range for grid in grids), strict=True)
        input_ = StaticInput.over(min(lows), max(highs))
    else:
        return None
    values_OI = torch.cat([weight.values_OI for weight in weights])
    return QuantizedWeight(values_OI, torch.cat([weight.scale_O for weight in weights]), input_, rotations.pop())


def quantize_rows(x_TI: torch.Tensor, rotation: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise a dynamic input: uint8 [T, I], and each row's scale and zero point [T, 1], both fp32."""
    x_TI = hadamard.rotate(x_TI, rotation)
    low, high = x_TI.aminmax(dim=1, keepdim=True)
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    scale_T1 = ((high - low) / 255).clamp_(min=_MIN_SCALE)
    inverse_T1 = scale_T1.reciprocal()
    zero_T1 = (-low * inverse_T1).round_()
    return (x_TI * inverse_T1).round_().add_(zero_T1).clamp_(0, 255).to(torch.uint8), scale_T1, zero_T1


def quantize_static(x_TI: torch.Tensor, grid: StaticInput) -> torch.Tensor:
    """Quantise a static input: uint8 [T, I]."""
    x_TI = x_TI.float() * (1 / grid.scale)
    return x_TI.round_().add_(grid.zero_point).clamp_(0, 255).to(torch.uint8)

"""Chooses a scheme for each layer: the scheme that was asked for, or a finer one where calibration shows a large error.

Measured on SmolLM2-135M-Instruct, whose down_proj inputs have massive activations (3,375 beside values under 1): with
one static grid for each input, layer 11's down_proj loses its whole output. Its error is a thousand times the error of
other layers, so a threshold on each layer's error finds it, without a search over the quality of whole models. The
share of layers with a finer scheme is limited; layers with the most error for their arithmetic come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.linear_int8 import Input, StaticInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine.quantization.calibrate import Measurement

_MAX_DYNAMIC_SHARE = 0.9  # of a static checkpoint's arithmetic in linear layers
_MAX_STATIC_LOSS = 7e-4  # |error|^2 / |output|^2, static less dynamic
_MAX_UNQUANTIZED_SHARE = 0.05  # of the arithmetic in linear layers
_MAX_DYNAMIC_LOSS = 2e-4  # |error|^2 / |output|^2 of a layer's outputs; int8 weights alone cause about 1e-4


@dataclass(frozen=True)
class Recipe:
    """How each linear layer will be stored.

    Attributes:
        inputs: how each layer quantises its input; None if the layer is not quantised.
        shares: shares of the arithmetic in linear layers: "static", "dynamic", "float" (weight only), "kept" (no int8).
    """

    inputs: dict[str, StaticInput | Input | None]
    shares: dict[str, float]


def choose(scheme: str, measurements: list[Measurement]) -> Recipe:
    """A recipe for one of the schemes of `deepseek-serve quantize`; layers that read the same input share one grid."""
    kept, dynamic = set[int](), set[int]()
    total = sum(item.cost for item in measurements)
    if scheme != "w8":
        budget = _MAX_UNQUANTIZED_SHARE * total
        kept = _worst(measurements, lambda item: item.dynamic_error, _MAX_DYNAMIC_LOSS, budget)
    if scheme == "w8a8-static":
        rest = [item for item in measurements if id(item) not in kept]
        budget = _MAX_DYNAMIC_SHARE * total
        dynamic = _worst(rest, lambda item: item.static_error - item.dynamic_error, _MAX_STATIC_LOSS, budget)
    inputs: dict[str, StaticInput | Input | None] = {}
    shares = dict.fromkeys(("static", "dynamic", "float", "kept"), 0.0)
    for item in measurements:
        input_: StaticInput | Input | None = {"w8": Input.FLOAT, "w8a8-dynamic": Input.DYNAMIC}.get(scheme, item.grid)
        if id(item) in kept:
            input_ = None
        elif id(item) in dynamic:
            input_ = Input.DYNAMIC
        inputs.update(dict.fromkeys(item.layers, input_))
        shares[kind_of(input_)] += item.cost / (total or 1.0)
    return Recipe(inputs, shares)


def kind_of(input_: StaticInput | Input | None) -> str:
    """The name of this kind of input in Recipe.shares and in engine.models.int8_scheme."""
    if input_ is None:
        return "kept"
    return "static" if isinstance(input_, StaticInput) else input_.value


def _worst(
    measurements: Iterable[Measurement], loss: Callable[[Measurement], float], threshold: float, budget: float
) -> set[int]:
    """The ids of layers whose loss exceeds a threshold, as many as fit into a budget of arithmetic.

    Layers with the most loss for their arithmetic come first.
    """
    chosen: set[int] = set()
    for item in sorted(measurements, key=lambda item: loss(item) / max(item.cost, 1e-9), reverse=True):
        if loss(item) > threshold and item.cost <= budget:
            chosen.add(id(item))
            budget -= item.cost
    return chosen

"""Which layers get which scheme: the one that was asked for, but for those that calibration shows it would hurt.

Measured on SmolLM2-135M-Instruct, whose down_proj inputs hold massive activations (3,375 beside values under 1): with
one static grid for each input, layer 11's down_proj loses its whole output. Errors there are a thousand times those of
other layers, so a threshold on a layer's own error tells them apart, and no search over whole-model quality is needed.
Where more layers pass it than may be spared, those go first that lose most for their arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.linear_int8 import Input, StaticInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine.quantization.calibrate import Measurement

SCHEMES = ("w8a8-static", "w8a8-dynamic", "w8")
_DYNAMIC_INSTEAD = 0.35  # of the arithmetic in linear layers may be dynamic in a static checkpoint
_STATIC_LOSS = 1e-3  # of |error|^2 / |output|^2 by which static may exceed dynamic
_LEFT_OUT = 0.05  # of the arithmetic may stay in numbers
_DYNAMIC_LOSS = 5e-4  # of |error|^2 / |output|^2 in a layer's outputs; int8 weights alone make about 1e-4


@dataclass(frozen=True)
class Recipe:
    """How each linear layer is to be stored.

    Attributes:
        inputs: of each layer, how it treats its input; None where its weight stays as it is.
        shares: of the arithmetic in linear layers, "static", "dynamic", "float" (weights only) and "kept" (no int8).
    """

    inputs: dict[str, StaticInput | Input | None]
    shares: dict[str, float]


def choose(scheme: str, measurements: list[Measurement]) -> Recipe:
    """A recipe for one of SCHEMES; layers that read one input share its grid."""
    kept: set[int] = set()
    dynamic: set[int] = set()
    if scheme != "w8":
        kept = _worst(measurements, lambda item: item.dynamic_error, _DYNAMIC_LOSS, _LEFT_OUT)
    if scheme == "w8a8-static":
        loss = {id(item): item.static_error - item.dynamic_error for item in measurements}
        rest = [item for item in measurements if id(item) not in kept]
        total = sum(item.cost for item in measurements)
        dynamic = _worst(rest, lambda item: loss[id(item)], _STATIC_LOSS, _DYNAMIC_INSTEAD, total)
    inputs: dict[str, StaticInput | Input | None] = {}
    shares = dict.fromkeys(("static", "dynamic", "float", "kept"), 0.0)
    total = sum(item.cost for item in measurements) or 1.0
    for item in measurements:
        input_: StaticInput | Input | None = {"w8": Input.FLOAT, "w8a8-dynamic": Input.DYNAMIC}.get(scheme, item.grid)
        if id(item) in kept:
            input_ = None
        elif id(item) in dynamic:
            input_ = Input.DYNAMIC
        inputs.update(dict.fromkeys(item.layers, input_))
        shares[kind_of(input_)] += item.cost / total
    return Recipe(inputs, shares)


def kind_of(input_: StaticInput | Input | None) -> str:
    """The word for it in Recipe.shares and in engine.models.int8_scheme."""
    if input_ is None:
        return "kept"
    return "static" if isinstance(input_, StaticInput) else input_.value


def _worst(
    measurements: Iterable[Measurement],
    loss: Callable[[Measurement], float],
    threshold: float,
    share: float,
    total: float | None = None,
) -> set[int]:
    """Those that lose more than a threshold, as many as fit into a share of the arithmetic (as ids).

    First come those that lose most for their arithmetic.
    """
    ordered = sorted(measurements, key=lambda item: loss(item) / max(item.cost, 1e-9), reverse=True)
    budget = share * (total if total is not None else sum(item.cost for item in ordered))
    chosen: set[int] = set()
    for item in ordered:
        if loss(item) > threshold and item.cost <= budget:
            chosen.add(id(item))
            budget -= item.cost
    return chosen

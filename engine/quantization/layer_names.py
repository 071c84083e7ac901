"""Names of linear layers: those that are never quantised, experts that belong together, targets of a scheme."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from engine.errors import ModelError
from engine.loading.name_list import name_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NEVER_QUANTIZED = ("lm_head", r"re:.*\.mlp\.gate$", r"re:.*\.kv_b_proj$", r"re:.*\.indexer\..*",
                   r"re:.*\.mlp\.router\..*", r"re:heads\..*")  # fmt: skip
_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(\w+)")


def expert_parts(layer: str) -> tuple[str, str] | None:
    """("model.layers.1.mlp.experts", "up_proj") of the layer of a routed expert; None of another layer."""
    match = _EXPERT.fullmatch(layer)
    return None if match is None else (match[1], match[2])


@contextlib.contextmanager
def naming(layers: Sequence[str]) -> Iterator[None]:
    """Make a ValueError a ModelError that names the layers whose weight cannot be quantised."""
    try:
        yield
    except ValueError as error:
        raise ModelError(f"the weight of {name_list(layers)} cannot be quantised: {error}") from None


def targets_of(layers: Iterable[str]) -> tuple[str, ...]:
    """Layers as targets of a scheme; one regular expression stands for all experts of a decoder layer."""
    targets: dict[str, None] = {}
    for layer in layers:
        parts = expert_parts(layer)
        targets[layer if parts is None else rf"re:{re.escape(parts[0])}\.\d+\.{parts[1]}$"] = None
    return tuple(targets)

"""Names of layers in a quantization_config: a name, "re:" and an expression, or "Linear" for all others. No torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


def matches(target: str, layer: str) -> bool:
    """Whether a target names a layer; an expression matches from the name's start, as in compressed-tensors."""
    if target.startswith("re:"):
        return re.match(target[3:], layer) is not None
    return target == layer


def find(groups: Iterable[tuple[T, tuple[str, ...]]], ignore: tuple[str, ...], layer: str) -> T | None:
    """What belongs to the first group that names the layer, before groups of all layers; None if it is ignored."""
    groups = list(groups)
    if any(matches(target, layer) for target in ignore):
        return None
    for item, targets in groups:
        if any(matches(target, layer) for target in targets):
            return item
    return next((item for item, targets in groups if "Linear" in targets), None)


def read_targets(where: str, value: Any) -> tuple[str, ...]:
    """Check a list of targets.

    Raises:
        ModelError: it is no list of names and valid expressions.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{where} is {value!r}; expected a list of names")
    for item in value:
        try:
            matches(item, "")
        except re.error as error:
            raise ModelError(f"{where} has {item!r}, which is no regular expression: {error}") from None
    return tuple(value)

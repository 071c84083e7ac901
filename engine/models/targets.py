"""Names of layers in a quantization_config: a name, "re:" and an expression, or "Linear" for all others. No torch.

Expressions come from a checkpoint, and Python's matching can take time exponential in a name's length: expressions that
could are refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

_MAX_LENGTH = 2000  # letters of an expression
_MAX_WAYS = 1 << 30  # to match a name: five times ".*"
_WAYS_OF_REPEAT = 64  # about as many as a name has letters
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{[\d,]+\}|.", re.DOTALL)
_MAX_SHOWN = 100  # letters of a faulty target in an error


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
        ModelError: it is no list of names and valid expressions, or matching an expression could take long.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{where} is {value!r}; expected a list of names")
    for item in value:
        if item.startswith("re:") and (fault := _fault_of(item[3:])):
            shown = item if len(item) <= _MAX_SHOWN else f"{item[:_MAX_SHOWN]}..."
            raise ModelError(f"{where} has {shown!r}, {fault}")
    return tuple(value)


def _fault_of(expression: str) -> str | None:
    """What is wrong with an expression."""
    if len(expression) > _MAX_LENGTH:
        return f"an expression of more than {_MAX_LENGTH} letters"
    if re.search(r"[\s#]", expression):  # of the verbose syntax, which `_ways` does not read
        return 'an expression with white space or "#", which names of layers do not have'
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        return f"which is no regular expression: {error}"
    if _ways(expression) > _MAX_WAYS:
        return "an expression that could take very long to match: it has too many repeats, or repeats of repeats"
    return None


def _ways(expression: str) -> float:
    """About how many ways a valid expression has to match a name; infinity where a repeated group has several."""
    groups = [[0.0, 1.0]]  # open ones: the ways of the alternatives before, and of this one so far
    last: float | None = None  # the ways of what a quantifier would repeat
    previous = ""
    for part in _PART.findall(expression):
        if part == "(":
            groups.append([0, 1])
            last = None
        elif part == "|":
            groups[-1] = [sum(groups[-1]), 1]
            last = None
        elif part == ")" and len(groups) > 1:
            last = sum(groups.pop())
            groups[-1][1] *= last
        elif part == "?" or part in "*+" or (part[0] == "{" and len(part) > 1):
            if last is not None and previous != "(":  # else "(?", or the "?" and "+" behind a quantifier
                if last > 1 and part != "?":
                    return float("inf")
                groups[-1][1] *= 2 if part == "?" else _WAYS_OF_REPEAT
            last = None
        else:
            last = 1
        previous = part
    return sum(groups[0])

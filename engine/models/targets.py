"""Names of layers in a quantization_config: a name, "re:" and an expression, or "Linear" for all others. No torch.

Expressions come from a checkpoint, and Python's matching can take time exponential in a name's length: expressions that
could are refused. What is slow but not that slow is bounded by the time that all layers take.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engine.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")

_MAX_LENGTH = 2000  # letters of an expression
_MAX_EXPRESSIONS, _MAX_LETTERS = 2000, 100_000  # of a whole config; 61 layers of experts have 183 of 50 letters
_MAX_SECONDS = 10.0  # of a thread, to match all layers: 45,000 experts with 183 expressions take two
_BETWEEN_CLOCKS = 16  # expressions between looks at the clock; the slowest take some hundredths of a second each
_MAX_WAYS = 1 << 30  # to match a name: five times ".*"
_WAYS_OF_REPEAT = 64  # about as many as a name has letters
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{[\d,]+\}|.", re.DOTALL)
_MAX_SHOWN = 100  # letters of a faulty target in an error


class Targets(Generic[T]):
    """Groups of targets, and targets to ignore: finds what belongs to a layer, once for each layer."""

    def __init__(self, groups: Iterable[tuple[T, tuple[str, ...]]], ignore: tuple[str, ...]) -> None:
        """Compile the expressions, which `read_targets` has checked."""
        groups = list(groups)
        self._ignored = _Matcher(ignore)
        self._groups = [(item, _Matcher(targets)) for item, targets in groups]
        self._default = next((item for item, targets in groups if "Linear" in targets), None)
        self._found: dict[str, T | None] = {}
        self._seconds = 0.0

    def find(self, layer: str) -> T | None:
        """What belongs to the first group that names the layer, before groups of all layers; None if it is ignored.

        Raises:
            ModelError: to match all layers so far took too long.
        """
        if layer not in self._found:
            started = time.thread_time()
            self._found[layer] = self._find(layer, started + _MAX_SECONDS - self._seconds)
            self._seconds += time.thread_time() - started
        return self._found[layer]

    def _find(self, layer: str, deadline: float) -> T | None:
        if self._ignored.matches(layer, deadline):
            return None
        return next((item for item, targets in self._groups if targets.matches(layer, deadline)), self._default)


class _Matcher:
    """Some targets. An expression matches from the name's start, as in compressed-tensors."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._names = frozenset(targets)
        self._expressions = [re.compile(target[3:]) for target in targets if target.startswith("re:")]

    def matches(self, layer: str, deadline: float) -> bool:
        """Whether a target names the layer."""
        if layer in self._names:
            return True
        for first in range(0, len(self._expressions), _BETWEEN_CLOCKS):
            if time.thread_time() > deadline:
                raise ModelError(
                    f"quantization_config has expressions that take more than {_MAX_SECONDS} s to match with the "
                    "names of all layers"
                )
            if any(item.match(layer) for item in self._expressions[first : first + _BETWEEN_CLOCKS]):
                return True
        return False


def check_amount(config: Mapping[str, Any]) -> None:
    """Refuse a quantization_config with so many expressions that it takes long to compile them.

    Raises:
        ModelError: the text says how many are valid.
    """
    lists = [group.get("targets") for group in config["config_groups"].values() if isinstance(group, dict)]
    texts = [item for items in (*lists, config.get("ignore")) if isinstance(items, list) for item in items]
    expressions = [text for text in texts if isinstance(text, str) and text.startswith("re:")]
    if len(expressions) > _MAX_EXPRESSIONS or sum(map(len, expressions)) > _MAX_LETTERS:
        raise ModelError(
            f"quantization_config has {len(expressions)} expressions of {sum(map(len, expressions))} letters; valid "
            f"are {_MAX_EXPRESSIONS} and {_MAX_LETTERS}"
        )


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

"""The numbers of a JSON schema: refuses bounds, multiples and values that llguidance would not keep exactly."""

from __future__ import annotations

import bisect
from decimal import Decimal
from typing import Any

from engine.errors import RequestError

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MAX_MULTIPLE = 100_000  # llguidance takes seconds to build a number's automaton beyond it
_MAX_WHOLE = 1 << 53  # integers up to it are exact in llguidance; larger ones are rounded
_MAX_FRACTION = 1_000_000_000_000  # where a double still tells multiples apart
_MERGING = {"allOf", "anyOf", "oneOf", "$ref"}  # what may bring another schema's bounds beside a schema's own
_REMARKS = {
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "discriminator",
}  # keywords that bound nothing


def settle(node: dict[str, Any]) -> None:
    """Settle the numbers of one schema, in place.

    Raises:
        RequestError: they cannot be enforced.
    """
    for keyword in (*_BOUNDS, "multipleOf", "const", "enum"):
        _check_exact(keyword, node.get(keyword))
    if _is_number(node.get("multipleOf")):
        _settle_multiples(node, node["multipleOf"])


def _check_exact(keyword: str, value: Any) -> None:
    """Refuse numbers that would be rounded, at any depth of a value."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value
        elif _is_number(value) and not -_MAX_WHOLE <= value <= _MAX_WHOLE:
            raise RequestError(f"'{keyword}' has {value!r:.40}: numbers beyond {_MAX_WHOLE} (2**53) are not exact here")


def check_ranges(nodes: list[dict[str, Any]]) -> None:
    """Refuse an excluded whole number less than one away from a bound that is none: llguidance would let it through."""
    ends = [(_ends(node, "minimum"), _ends(node, "maximum")) for node in nodes if node.get("type") != "integer"]
    if any((node.keys() & _MERGING and len(node.keys() - _REMARKS) > 1) or "allOf" in node for node in nodes):
        ends = [({end for low, _ in ends for end in low}, {end for _, high in ends for end in high})]
    for lows, highs in ends:
        _check_side(lows, sorted({high for high, _ in highs}))
        _check_side({(-high, excluded) for high, excluded in highs}, sorted({-low for low, _ in lows}))


def _check_side(lows: set[tuple[float, bool]], highs: list[float]) -> None:
    """Refuse an excluded whole lower bound that has an upper one within a unit; negative ones are not at fault."""
    for low, is_excluded in lows:
        place = bisect.bisect_right(highs, low)
        if is_excluded and low == int(low) >= 0 and place < len(highs) and highs[place] < low + 1:
            raise RequestError(
                f"an excluded bound of {abs(low)} less than 1 from the other bound cannot be enforced without its "
                "whole number"
            )


def _ends(node: dict[str, Any], keyword: str) -> set[tuple[float, bool]]:
    """A schema's bounds on one side, each with whether it is excluded."""
    bound, exclusive = node.get(keyword), node.get(f"exclusive{keyword.title()}")
    given: list[tuple[Any, bool]] = [(bound, exclusive is True), (exclusive, True)]  # true is draft 4's
    return {(value, excluded) for value, excluded in given if _is_number(value)}


def _settle_multiples(node: dict[str, Any], multiple: float) -> None:
    """Refuse multiples that are not clear or not cheap."""
    if Decimal(multiple) != Decimal(str(multiple)):
        raise RequestError(f"'multipleOf' {multiple} is no binary fraction: validators disagree on its multiples")
    if _cofactor(multiple) > _MAX_MULTIPLE:
        raise RequestError(f"'multipleOf' {multiple} is too large or has too many digits")
    if node.get("type") != "integer":
        for keyword, closer, limit in (("minimum", max, -_MAX_FRACTION), ("maximum", min, _MAX_FRACTION)):
            node[keyword] = closer(node[keyword], limit) if _is_number(node.get(keyword)) else limit


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cofactor(number: float) -> int:
    """The digits of a number as an integer, without its factors 2 and 5: what its multiples' automaton grows with."""
    digits = int("".join(map(str, Decimal(str(number)).as_tuple().digits)))
    for factor in (2, 5):
        while digits and digits % factor == 0:
            digits //= factor
    return digits

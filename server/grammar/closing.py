"""Closes objects of a JSON schema: what says nothing of further properties gets none.

Every text of a closed schema is valid by the open one. Small models write properties without end where they may, and
other servers close objects too. A schema that combines schemas stays open, as its parts describe one object together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMBINING = {
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$dynamicRef", "patternProperties"),
    *("dependencies", "dependentSchemas", "dependentRequired", "unevaluatedProperties", "propertyNames"),
    *("minProperties", "maxProperties"),
}

_MAPS = ("properties", "$defs", "definitions")  # whose values have schemas by name
_DATA = ("enum", "const", "default", "examples")


def closed(schema: Any) -> Any:
    """Return a schema whose objects have the properties that it lists and no others, unless it speaks of others.

    Raises:
        RequestError: it is nested too deeply.
    """
    if any("allOf" in node or ("properties" in node and node.keys() & _COMBINING) for node in _nodes(schema)):
        return schema
    try:
        return _close(schema)
    except RecursionError:
        raise RequestError("the schema is nested too deeply") from None


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _close(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    node: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _MAPS and isinstance(value, dict):
            node[keyword] = {name: _close(part) for name, part in value.items()}
        else:
            node[keyword] = value if keyword in _DATA else _close(value)
    listed, required = node.get("properties"), node.get("required", [])
    if isinstance(listed, dict) and isinstance(required, list) and set(map(str, required)) <= listed.keys():
        node.setdefault("additionalProperties", False)
    return node

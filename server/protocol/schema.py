"""What requests' JSON schemas say beyond pydantic's: null for a default, and fields that ask for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_ABOUT = ("title", "description", "default", "examples", "deprecated")


def as_taken(schema: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Change a request's schema to what is taken: null in the place of any default, and these values of more fields."""
    properties = schema["properties"]
    for name, said in properties.items():
        if name not in schema.get("required", ()):
            properties[name] = _or_null(said)
    for name, values in neutral.items():
        if name not in properties:
            properties[name] = {"enum": [*values, None], "description": "no effect: what is done anyway, or nothing"}


def _or_null(said: dict[str, Any]) -> dict[str, Any]:
    if any(option.get("type") == "null" for option in said.get("anyOf", [said])):
        return said
    about = {name: said[name] for name in _ABOUT if name in said}
    rest = {name: value for name, value in said.items() if name not in _ABOUT}
    return {"anyOf": [rest, {"type": "null"}], **about}

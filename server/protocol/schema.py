"""What requests' JSON schemas say beyond pydantic's: null for a default, and fields that ask for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NULL = {"type": "null"}
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


def split(schema: dict[str, Any], kinds: Iterable[Mapping[str, dict[str, Any] | None]]) -> None:
    """Split an object's schema into its kinds.

    Args:
        schema: what is changed.
        kinds: what each says of some fields: None if the field must be there and not be null, else its schema.
    """
    schema["anyOf"] = [_kind(schema, fields) for fields in kinds]
    for name in ("properties", "additionalProperties", "required", "type"):
        schema.pop(name, None)


def _kind(schema: dict[str, Any], fields: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    properties = schema["properties"]
    told = {name: _not_null(properties[name]) if said is None else said for name, said in fields.items()}
    needed = [name for name, said in fields.items() if said is None]
    return {
        "type": "object",
        "properties": {**properties, **told},
        "required": [*schema.get("required", ()), *needed],
        "additionalProperties": False,
    }


def _not_null(said: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in said["anyOf"] if option.get("type") != "null"]
    about = {name: said[name] for name in _ABOUT if name in said and name != "default"}
    return {**about, **options[0]} if len(options) == 1 else {**about, "anyOf": options}


def _or_null(said: dict[str, Any]) -> dict[str, Any]:
    if any(option.get("type") == "null" for option in said.get("anyOf", [said])):
        return said
    about = {name: said[name] for name in _ABOUT if name in said}
    rest = {name: value for name, value in said.items() if name not in _ABOUT}
    return {"anyOf": [rest, NULL], **about}

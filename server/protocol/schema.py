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


def one_of(schema: dict[str, Any], field: str, kinds: Mapping[str | tuple[str, ...], Mapping[str, Any]]) -> None:
    """Split an object's schema into its kinds.

    Args:
        schema: what is changed.
        field: what tells the kinds apart.
        kinds: a value of it, or several -> what is said of other fields in this kind: None if it must be there and not
            be null, else a schema.
    """
    split = []
    for values, others in kinds.items():
        told = {field: {"type": "string", "enum": [values] if isinstance(values, str) else list(values)}}
        split.append(_kind(schema, others, told))
    _become(schema, split)


def just_one(schema: dict[str, Any], fields: Mapping[str, dict[str, Any]]) -> None:
    """Split an object's schema by which one of these fields it has; each comes with what stands for its absence."""
    split = []
    for name in fields:
        others = {**fields, name: None}
        split.append(_kind(schema, others, {}))
    _become(schema, split)


def _kind(schema: dict[str, Any], others: Mapping[str, dict[str, Any] | None], told: dict[str, Any]) -> dict[str, Any]:
    properties = schema["properties"]
    said = {name: _not_null(properties[name]) if said is None else said for name, said in others.items()}
    needed = [name for name, said in others.items() if said is None]
    return {
        "type": "object",
        "properties": {**properties, **told, **said},
        "required": [*schema.get("required", ()), *needed],
        "additionalProperties": False,
    }


def _become(schema: dict[str, Any], kinds: list[dict[str, Any]]) -> None:
    for name in ("properties", "additionalProperties", "required", "type"):
        schema.pop(name, None)
    schema["anyOf"] = kinds


def _not_null(said: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in said["anyOf"] if option.get("type") != "null"]
    about = {name: said[name] for name in _ABOUT if name in said and name != "default"}
    return {**about, **options[0]} if len(options) == 1 else {**about, "anyOf": options}


def _or_null(said: dict[str, Any]) -> dict[str, Any]:
    if any(option.get("type") == "null" for option in said.get("anyOf", [said])):
        return said
    about = {name: said[name] for name in _ABOUT if name in said}
    rest = {name: value for name, value in said.items() if name not in _ABOUT}
    return {"anyOf": [rest, {"type": "null"}], **about}

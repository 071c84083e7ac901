"""Reads the recipe's file and `KEY=VALUE` of the command line. Each mistake is one line that names its key."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from engine.errors import ConfigError
from training.config import SECTIONS, Settings
from training.read_yaml import parse_yaml, read_yaml, shortened, shown, shown_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Settings of a YAML file, with `KEY=VALUE` put over it (`data.max_length=512`; a value is YAML).

    Raises:
        ConfigError: naming the key, its value and what is valid.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{shown_path(path)} must hold settings, as in 'learning_rate: 3.0e-5'")
    for text in overrides:
        _override(values, text)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{shown_path(path)}: {'; '.join(map(_explain, error.errors()))}") from None


def write_settings(path: Path, settings: Settings) -> None:
    """Write all settings as a recipe."""
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _override(values: dict[str, Any], text: str) -> None:
    """Put one KEY=VALUE of the command line into the file's values."""
    key, equals, value = text.partition("=")
    *parents, name = key.split(".")
    if not equals or not all((*parents, name)):
        raise ConfigError(
            f"{shown(text)} is no setting; expected KEY=VALUE, as in total_steps=500 or data.max_length=512"
        )
    for parent in parents:
        inner = values.get(parent)
        if isinstance(inner, str) and parent == "objective":
            inner = {"kind": inner}
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{shown(text)}: {parent} is {shown(inner)} and has no keys")
        values[parent] = dict(inner or {})
        values = values[parent]
    try:
        values[name] = parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"{shown(text)} cannot be read as YAML: {error}") from None


_EXPECTED = {  # by pydantic's kind of mistake
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "path_type": "a path",
    "tuple_type": "a list",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "finite_number": "a finite number",
    "too_short": "a list of {min_length} or more",
    "string_type": "a text",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def _explain(mistake: ErrorDetails) -> str:
    """One of pydantic's errors in this project's words."""
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "value_error":  # of Settings' own check
        return str(context["error"])
    places = [str(place) for place in mistake["loc"]]
    if places[0] == "objective" and len(places) > 2:
        del places[1]  # the kind, which pydantic puts in
    key = ".".join(places)
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"there is no setting {shortened(key)}; {_nearest(places)}"
    if kind == "union_tag_invalid":
        return f"objective is {context['tag']}; expected one of {_listed(context['expected_tags'])}"
    if kind == "union_tag_not_found":
        return "objective needs a kind, as in {kind: dpo, beta: 0.1}"
    if kind == "literal_error":
        return f"{key} is {shown(mistake['input'])}; expected one of {_listed(context['expected'])}"
    expected = _EXPECTED.get(kind, mistake["msg"]).format(**context)
    return f"{key} is {shown(mistake['input'])}; expected {expected}"


def _listed(words: str) -> str:
    return words.replace("'", "").replace(" or ", ", ")


def _nearest(places: Sequence[str]) -> str:
    """The setting that was probably meant, or those that are there."""
    section: type[BaseModel] = Settings
    for place in places[:-1]:
        section = SECTIONS.get(place, section)
    known = list(section.model_fields)
    nearest = difflib.get_close_matches(places[-1], known, 1, 0.6)
    if nearest:
        return f"did you mean {'.'.join([*places[:-1], nearest[0]])}?"
    return "deepseek-train --help lists them" if section is Settings else f"there are {', '.join(known)}"

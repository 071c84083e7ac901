"""Reads YAML that a person has written: each mistake is one line, and no file or value takes the machine with it."""

from __future__ import annotations

import re
import reprlib
from typing import TYPE_CHECKING, Any

import yaml

from engine.errors import ConfigError
from engine.loading.files import MIB, read_bytes

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

_MAX_CHARACTERS = 200  # of a mistake
_SHOWN = reprlib.Repr()  # a few items of two levels
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother = 2, 80, 80


def read_yaml(path: Path) -> Any:
    """The value that a file holds.

    Raises:
        ConfigError: the file cannot be read, or is no YAML.
    """
    try:
        return parse_yaml(read_bytes(path, MIB).decode("utf-8"))
    except (OSError, ValueError) as error:  # ValueError: a path with NUL, too
        raise ConfigError(f"{shown_path(path)} cannot be read: {error}") from None


def parse_yaml(text: str) -> Any:
    """The value that a text stands for.

    Raises:
        ValueError: it stands for none; in one line.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # nosec B506  # a SafeLoader
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(shortened(" ".join(str(error).split()))) from None


def shown(value: object) -> str:
    """A value as a mistake shows it: short, whatever it refers to."""
    return _SHOWN.repr(value)


def shown_path(path: Path) -> str:
    """A path as a mistake shows it."""
    return shortened(str(path))


def shortened(text: str) -> str:
    """A text without its middle where it is long."""
    half = _MAX_CHARACTERS // 2
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


class _Loader(yaml.SafeLoader):
    """YAML whose keys are texts, each there once, and whose numbers may have an exponent without a point.

    3e-5 is a number, as in YAML 1.2.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key_node.start_mark)
            if key in known:
                raise yaml.constructor.ConstructorError(None, None, f"{shown(key)} is there twice", key_node.start_mark)
            known.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and ("\0" in value or (not value.isascii() and _has_surrogates(value))):
            raise yaml.constructor.ConstructorError(
                None, None, "a text has NUL or half a character in it", node.start_mark
            )
        return value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)

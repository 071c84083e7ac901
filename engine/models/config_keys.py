"""Reads a checkpoint's settings by name and checks each value, which may be damaged. Imports no torch."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from engine.errors import ModelError
from engine.loading.files import MIB, read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_REQUIRED: Any = object()
LARGEST = (1 << 24) - 1  # far above any size of a real model; a larger value would only exhaust memory
LARGEST_EPSILON = 1.0  # that of a norm is near 1e-6; a large one makes every input zero
MOST_LAYERS = 4096  # each has objects of its own, which are made before one learns that its tensors are not there
_MAX_JSON = 32 * MIB  # DeepSeek-V3's index of 91,991 tensors has 9


class Keys:
    """A checkpoint's settings by name; an error names the key, its value and what is valid."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values, self._where, self._prefix = values, where, prefix
        self._read: set[str] = set()

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """A value of any type; null means the default."""
        self._read.add(name)
        value = self.values.get(self._prefix + name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelError(f"{self._where} lacks '{self._prefix}{name}'")
        return default

    def integer(self, name: str, default: Any = _REQUIRED, *, at_least: int = 1, at_most: int = LARGEST) -> int:
        """A whole number."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            self.refuse(name, value, f"a whole number from {at_least} to {at_most}")
        return int(value)

    def integers(self, *names: str) -> dict[str, Any]:
        """Positive whole numbers by their names."""
        return {name: self.integer(name) for name in names}

    def number(self, name: str, default: Any = _REQUIRED, *, at_most: float = sys.float_info.max) -> float:
        """A positive number."""
        value = self.get(name, default)
        if not is_positive(value) or value > at_most:
            bound = "" if at_most == sys.float_info.max else f" up to {at_most:g}"
            self.refuse(name, value, f"a positive number{bound}")
        return float(value)

    def fraction(self, name: str, default: float) -> float:
        """A number from 0, which is valid, to 1, which is not."""
        value = self.get(name, default)
        if (value != 0 and not (is_positive(value) and value < 1)) or isinstance(value, bool):
            self.refuse(name, value, "a number from 0 to below 1")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return bool(value)

    def choice(self, name: str, default: str, valid: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.get(name, default)
        if value not in valid:
            self.refuse(name, value, f"one of {', '.join(valid)}")
        return str(value)

    def unread(self) -> set[str]:
        """Names of settings that nobody asked for so far."""
        prefix = self._prefix
        return {key.removeprefix(prefix) for key in self.values if key.startswith(prefix)} - self._read

    def full_name(self, name: str) -> str:
        """A setting's name as the checkpoint spells it."""
        return self._prefix + name

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        """Raise an error that names the key and what is expected."""
        raise ModelError(f"{self._prefix}{name} in {self._where} is {value!r:.200}; expected {expected}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: the file is missing, has more than 32 MiB, or is not a JSON object.
    """
    try:
        value = json.loads(read_bytes(path, _MAX_JSON).decode())
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def is_name(value: Any) -> bool:
    """Whether a value is a text that can be sent to a client: JSON may hold half a character."""
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

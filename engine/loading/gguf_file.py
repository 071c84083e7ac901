"""A GGUF file's metadata and tensor directory, memory-mapped (format: ggml's docs/gguf.md). Imports no torch.

gguf.GGUFReader makes a numpy array of every metadata element, which takes over a second for a vocabulary. This reader
takes a tenth of that time. Quantised blocks are dequantized by the gguf package (engine.loading.gguf_source).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.loading.files import check_regular

if TYPE_CHECKING:
    from pathlib import Path

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_COUNT = 1 << 24  # no sane file has more keys, tensors or array elements


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor's place in the file.

    Attributes:
        shape: in torch's order, outermost first.
        ggml_type: its stored type (gguf.GGMLQuantizationType).
        offset: bytes from the start of the file.
    """

    shape: tuple[int, ...]
    ggml_type: int
    offset: int


class GGUFFile:
    """Metadata and tensor directory are read when the file is opened; tensor bytes stay in the memory map."""

    def __init__(self, path: Path) -> None:
        """Open and parse.

        Raises:
            ModelError: the file is not GGUF, has an unsupported version, or is cut short.
        """
        self.path = path
        try:
            check_regular(path)
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        if self.data[:4] != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
        self._pos = 4
        try:
            version, num_tensors, num_keys = self._scalar("<I"), self._scalar("<Q"), self._scalar("<Q")
            if version not in (2, 3):
                raise ModelError(f"{path} has GGUF version {version}; versions 2 and 3 are read")
            self.metadata: dict[str, Any] = {}
            for _ in range(_checked(num_keys)):
                key = self._string()
                self.metadata[key] = self._value(self._scalar("<I"))
            self.tensors = self._directory(_checked(num_tensors))
        except (struct.error, LookupError, UnicodeDecodeError, ArithmeticError, TypeError, RecursionError) as error:
            raise ModelError(f"{path} is damaged or cut short (at byte {self._pos}: {error})") from None

    def _directory(self, num_tensors: int) -> dict[str, GGUFTensor]:
        entries = []
        for _ in range(num_tensors):
            name = self._string()
            dims = [self._scalar("<Q") for _ in range(self._scalar("<I"))]
            entries.append((name, tuple(reversed(dims)), self._scalar("<I"), self._scalar("<Q")))
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self._pos // alignment) * alignment
        return {name: GGUFTensor(shape, kind, start + offset) for name, shape, kind, offset in entries}

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self._pos)
        self._pos += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._scalar("<Q")
        text = self.data[self._pos : self._pos + length]
        if len(text) != length:
            raise IndexError("a string runs past the end")
        self._pos += length
        return text.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        element, count = self._scalar("<I"), _checked(self._scalar("<Q"))
        if element in _SCALARS:
            form = f"<{count}{_SCALARS[element][1:]}"
            values = list(struct.unpack_from(form, self.data, self._pos))
            self._pos += struct.calcsize(form)
            return values
        return [self._value(element) for _ in range(count)]


def _checked(count: int) -> int:
    if count > _MAX_COUNT:
        raise OverflowError(f"a count of {count}")
    return count

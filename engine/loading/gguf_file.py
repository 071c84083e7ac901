"""A GGUF file's metadata and tensor directory, memory-mapped (format: ggml's docs/gguf.md). Imports no torch.

gguf.GGUFReader makes a numpy array of every metadata element, which takes over a second for a vocabulary. This reader
takes a tenth of that time. Quantised blocks are dequantized by the gguf package (engine.loading.gguf_source).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.loading.files import map_file

if TYPE_CHECKING:
    from pathlib import Path

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_COUNT = 1 << 22  # keys, tensors and array elements of a file together: four times those of large vocabularies
_MAX_HEADER = 1 << 28  # bytes up to which texts are read; a sparse file can be longer than memory
_MAX_NAME = 255  # bytes of a tensor's name
_MAX_DIMS = 4  # as in ggml
_LEAST_ALIGNMENT = 8


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
            ModelError: the file is not GGUF, has an unsupported version, is cut short, or contradicts itself.
        """
        self.path = path
        try:
            self.data = map_file(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        if self.data[:4] != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
        self._pos, self._num_left = 4, _MAX_COUNT
        try:
            version, num_tensors, num_keys = self._scalar("<I"), self._scalar("<Q"), self._scalar("<Q")
            if version not in (2, 3):
                raise ModelError(f"{path} has GGUF version {version}; versions 2 and 3 are read")
            self.metadata: dict[str, Any] = {}
            for _ in range(self._counted(num_keys)):
                key = self._string()
                if key in self.metadata:
                    raise ValueError(f"the key {key!r:.100} is there twice")
                self.metadata[key] = self._value(self._scalar("<I"))
            self.tensors = self._directory(self._counted(num_tensors))
        except (struct.error, LookupError, ValueError) as error:
            raise ModelError(f"{path} is damaged or cut short (at byte {self._pos}: {error})") from None

    def _directory(self, num_tensors: int) -> dict[str, GGUFTensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < _LEAST_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r:.100}, expected a power of two from 8")
        entries: dict[str, GGUFTensor] = {}
        for _ in range(num_tensors):
            name = self._string(_MAX_NAME)
            if not name or name in entries:
                raise ValueError(f"the tensor {name} is there twice" if name else "a tensor has no name")
            entries[name] = tensor = self._entry()
            if tensor.offset % alignment:
                raise ValueError(f"{name} lies at {tensor.offset}, which is no multiple of {alignment}")
        start = -(-self._pos // alignment) * alignment
        return {name: replace(tensor, offset=start + tensor.offset) for name, tensor in entries.items()}

    def _entry(self) -> GGUFTensor:
        """What stands behind a tensor's name; its offset is still from the end of the header."""
        num_dims = self._scalar("<I")
        if num_dims > _MAX_DIMS:
            raise ValueError(f"a tensor of {num_dims} dimensions")
        shape = tuple(reversed([self._scalar("<Q") for _ in range(num_dims)]))
        if any(size > 8 * len(self.data) for size in shape):  # of the smallest type, a value takes over a bit
            raise ValueError(f"a tensor of shape {list(shape)}, for which the file is too short")
        return GGUFTensor(shape, self._scalar("<I"), self._scalar("<Q"))

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self._pos)
        self._pos += struct.calcsize(form)
        return value

    def _string(self, max_length: int = _MAX_HEADER) -> str:
        length = self._scalar("<Q")
        if length > max_length or self._pos + length > min(len(self.data), _MAX_HEADER):
            raise ValueError(f"a text of {length} bytes")
        text = self.data[self._pos : self._pos + length]
        self._pos += length
        return text.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        element, count = self._scalar("<I"), self._counted(self._scalar("<Q"))
        if element in _SCALARS:
            form = f"<{count}{_SCALARS[element][1:]}"
            values = list(struct.unpack_from(form, self.data, self._pos))
            self._pos += struct.calcsize(form)
            return values
        if element != _STRING:  # ggml, too, reads no arrays of arrays
            raise ValueError(f"an array of type {element}")
        return [self._string() for _ in range(count)]

    def _counted(self, count: int) -> int:
        if count > self._num_left:
            raise ValueError(f"a count of {count}")
        self._num_left -= count
        return count

"""The tensors of a Hugging Face folder of safetensors files, sharded or not, memory-mapped and read one at a time.

Pickled weights are refused, because a pickle can run code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import ModelError
from engine.loading.files import check_regular, map_file, no_room_to_map
from engine.loading.mapped_bytes import mapped_bytes
from engine.loading.name_list import name_list
from engine.loading.weights import StoredTensor
from engine.memory import drop_pages
from engine.models.config_keys import read_json

if TYPE_CHECKING:
    import mmap

_INDEX = "model.safetensors.index.json"
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_BITS = {kind: dtype.itemsize * 8 for kind, dtype in _DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_COPIED_AT_ONCE = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies; `kind` is safetensors' name of its dtype."""

    file: Path
    data: mmap.mmap
    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsSource:
    """A TensorSource (engine.loading.weights): an index and its shards, or all .safetensors files of the folder."""

    def __init__(self, folder: Path) -> None:
        """Open all files.

        Raises:
            ModelError: the folder has no safetensors files, a shard is missing or damaged, or two have the same tensor.
        """
        self.path = folder
        self._places: dict[str, _Place] = {}
        files = _find_files(folder)
        self._is_sharded = len(files) > 1
        for file in files:
            places = _read_directory(file)
            if again := self._places.keys() & places.keys():
                raise ModelError(f"{file} has tensors that another file of the folder has too: {name_list(again)}")
            self._places.update(places)

    def names(self) -> set[str]:
        return set(self._places)

    def read(self, name: str) -> torch.Tensor:
        """Read a copy: a file that changes later must not change a running server's weights."""
        place = self._places[name]
        if place.kind not in _DTYPES:
            raise ModelError(f"{name_list([name])} cannot be read: torch has no dtype {place.kind}")
        tensor = torch.empty(place.shape, dtype=_DTYPES[place.kind])
        _copy(mapped_bytes(place.data, place.offset, place.num_bytes), tensor.view(-1).view(torch.uint8))
        return tensor

    def stored(self, name: str) -> StoredTensor:
        return StoredTensor(self._places[name].kind, self._places[name].num_bytes)

    def shard(self, name: str) -> str | None:
        place = self._places.get(name)
        return place.file.name if place is not None and self._is_sharded else None

    def release(self) -> None:
        """Nothing: what was read is a copy, and its pages have left memory."""


def _copy(from_: torch.Tensor, to: torch.Tensor) -> None:
    """Copy bytes of a mapped file, whose pages are in memory for a moment only, a part at a time."""
    for first in range(0, len(to), _COPIED_AT_ONCE):
        part = slice(first, first + _COPIED_AT_ONCE)
        to[part] = from_[part]
        drop_pages(from_.data_ptr(), min(part.stop, len(to)))


def _read_directory(file: Path) -> dict[str, _Place]:
    """The places of all tensors."""
    try:
        check_regular(file)
        tensors = _checked_header(file)
        data = map_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    places, offset = {}, 8 + int.from_bytes(data[:8], "little")
    for name, kind, shape in tensors:
        if kind not in _BITS:
            raise ModelError(f"{file} cannot be read: {name_list([name])} has the unknown dtype {kind}")
        places[name] = _Place(file, data, kind, shape, offset, num_bytes := math.prod(shape) * _BITS[kind] // 8)
        offset += num_bytes
    if offset != len(data):
        raise ModelError(f"{file} cannot be read: it has changed meanwhile")
    return places


def _checked_header(file: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, dtypes and shapes in the order in which tensors lie behind the header: without gaps, to the file's end.

    safetensors checks this. It maps the file meanwhile: for torch in a way that reserves memory for the whole of it,
    for numpy not.
    """
    try:
        with safe_open(file, framework="np") as handle:
            return [(name, *_dtype_and_shape(handle.get_slice(name))) for name in handle.offset_keys()]
    except MemoryError:
        raise no_room_to_map(file) from None


def _dtype_and_shape(header: Any) -> tuple[str, tuple[int, ...]]:
    return header.get_dtype(), tuple(header.get_shape())


def _find_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        files = _shards(folder, read_json(index).get("weight_map"))
    else:
        files = sorted(folder.glob("*.safetensors"))
    if absent := [file.name for file in files if not _exists(file)]:
        raise ModelError(f"{folder} lacks shards that its index names: {name_list(absent)}")
    if not files:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        hint = f" ({pickled[0]} is a pickle, which could run code and is never read)" if pickled else ""
        raise ModelError(f"{folder} has no .safetensors files{hint}")
    return files


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # a name that is too long for a file
        return False


def _shards(folder: Path, weight_map: Any) -> list[Path]:
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder}/{_INDEX} has no weight_map")
    names = set(map(str, weight_map.values()))
    if outside := [name for name in sorted(names) if Path(name).name != name]:
        raise ModelError(f"{folder}/{_INDEX} names a shard outside the folder: {name_list(outside[:1])}")
    return sorted(folder / name for name in names)

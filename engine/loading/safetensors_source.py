"""The tensors of a Hugging Face folder of safetensors files, sharded or not, memory-mapped and read one at a time.

Pickled weights are refused, because a pickle can run code.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import ModelError
from engine.loading.files import check_regular
from engine.loading.name_list import name_list
from engine.loading.weights import StoredTensor
from engine.memory import drop_pages
from engine.models.config_keys import read_json

_INDEX = "model.safetensors.index.json"
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_COPIED_AT_ONCE = 16 << 20  # bytes


class SafetensorsSource:
    """A TensorSource (engine.loading.weights): an index and its shards, or all .safetensors files of the folder."""

    def __init__(self, folder: Path) -> None:
        """Open all files.

        Raises:
            ModelError: the folder has no safetensors files, a shard is missing or damaged, or two have the same tensor.
        """
        self._handles: dict[str, Any] = {}  # safetensors' own, by tensor
        self._files = contextlib.ExitStack()
        for file in _find_files(folder):
            try:
                check_regular(file)
                handle = self._files.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError, RuntimeError) as error:  # torch's, where a limit forbids to map the file
                raise ModelError(f"{file} cannot be read: {error}") from None
            if again := self._handles.keys() & set(handle.keys()):
                raise ModelError(f"{file} has tensors that another file of the folder has too: {name_list(again)}")
            self._handles.update(dict.fromkeys(handle.keys(), handle))

    def names(self) -> set[str]:
        return set(self._handles)

    def read(self, name: str) -> torch.Tensor:
        """Read a copy: a file that changes later must not change a running server's weights."""
        try:
            return _copy(self._handles[name].get_tensor(name))
        except SafetensorError as error:  # a dtype that torch has not
            raise ModelError(f"{name_list([name])} cannot be read: {error}") from None

    def stored(self, name: str) -> StoredTensor:
        header = self._handles[name].get_slice(name)
        kind = header.get_dtype()
        return StoredTensor(kind, math.prod(header.get_shape()) * _SIZES.get(kind, 1))

    def release(self) -> None:
        """Nothing: what was read is a copy, and its pages have left memory."""


def _copy(mapped: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor in a mapped file, whose pages are in memory for a moment only, a part at a time."""
    tensor = torch.empty_like(mapped)
    from_, to = (x.reshape(-1).view(torch.uint8) for x in (mapped, tensor))
    for first in range(0, mapped.nbytes, _COPIED_AT_ONCE):
        part = slice(first, first + _COPIED_AT_ONCE)
        to[part] = from_[part]
        drop_pages(from_.data_ptr(), min(part.stop, mapped.nbytes))
    return tensor


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

"""Writes safetensors tensor by tensor: one file, or several files of at most 4 GiB and an index.

In a file, a header that says where each tensor lies stands before the tensors. A large file therefore begins with room
for a header, which is written last: only the newest tensors are in memory. A file is not named *.safetensors until all
are written, so what a killed writer leaves behind is never taken for a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, BinaryIO

import torch

from engine.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_SHARD_BYTES = 4 << 30
_HELD_BYTES = 32 << 20  # of tensors that wait for others; a file of less has a header of its own size
_HEADER_ROOM = 1 << 20  # bytes; a file is full when its header is
_METADATA = {"__metadata__": {"format": "pt"}}
_ALIGNMENT = 8  # bytes; a reader's view of a tensor must begin at a multiple of the size of its values
_DTYPES = {  # in the order of tensors in a file, which is safetensors' own: larger values first
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: number for number, dtype in enumerate(_DTYPES)}


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Refuse to begin to write so many bytes where there is no room for them.

    Raises:
        ConfigError: the text says how much there is.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise ConfigError(f"{folder} would have {num_bytes / 1e9:.3g} GB; its disk has {free / 1e9:.3g} GB free")


class ShardWriter:
    """Writes named tensors to a folder; keeps 32 MiB and the newest tensor in memory.

    As a context it removes its files where an error ends it.
    """

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._total = 0
        self._shards: list[_Shard] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for shard in self._shards:
                shard.discard()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor."""
        if not self._shards or not self._shards[-1].has_room(name, tensor, self._shard_bytes):
            self._begin()
        self._shards[-1].add(name, tensor.contiguous())
        self._total += tensor.nbytes

    def finish(self) -> int:
        """Write what is left, and an index if there are several files; the size of all tensors in bytes."""
        if not self._shards:
            self._begin()
        self._shards[-1].close()
        if len(self._shards) == 1:
            self._shards[0].path.rename(self._folder / "model.safetensors")
            return self._total
        weight_map = {}
        for number, shard in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{len(self._shards):05}.safetensors"
            shard.path.rename(self._folder / file)
            weight_map.update(dict.fromkeys(shard.names, file))
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return self._total

    def _begin(self) -> None:
        if self._shards:
            self._shards[-1].close()
        self._shards.append(_Shard(self._folder / f"part-{len(self._shards)}.unfinished"))


class _Shard:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self._held: dict[str, torch.Tensor] = {}
        self._entries: dict[str, dict[str, object]] = {}  # of the header, for tensors that are written
        self._file: BinaryIO | None = None
        self._size = self._held_size = self._written = 0
        self._header_size = len(json.dumps(_METADATA))

    def has_room(self, name: str, tensor: torch.Tensor, shard_bytes: int) -> bool:
        """Whether the tensor can be added; any can be to an empty file."""
        fits = self._header_size + _entry_size(name, tensor) <= _HEADER_ROOM
        return not self._size or (fits and self._size + tensor.nbytes <= shard_bytes)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self.names.append(name)
        self._held[name] = tensor
        self._header_size += _entry_size(name, tensor)
        self._size += tensor.nbytes
        self._held_size += tensor.nbytes
        if self._held_size > _HELD_BYTES:
            self._write_aligned()

    def close(self) -> None:
        """Write all that is held, and the header."""
        held = sorted(self._held.items(), key=lambda item: (_ORDER[item[1].dtype], item[0]))
        begin = self._written
        for name, tensor in held:
            self._enter(name, tensor)
        header = json.dumps(_METADATA | self._entries, separators=(",", ":"), ensure_ascii=False).encode()
        room = -(-len(header) // _ALIGNMENT) * _ALIGNMENT if self._file is None else _HEADER_ROOM
        with self._file or self.path.open("wb") as file:
            file.seek(0)
            file.write(room.to_bytes(8, "little") + header.ljust(room))
            file.seek(8 + room + begin)
            for _, tensor in held:
                file.write(_bytes(tensor))
        self._held = {}

    def discard(self) -> None:
        """Remove the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: what is not written yet cannot be
                self._file.close()
        self.path.unlink(missing_ok=True)

    def _write_aligned(self) -> None:
        """Write what is held, but for tensors behind which the next one would not be aligned: these are the last."""
        if self._file is None:
            self._file = self.path.open("wb")
            self._file.seek(8 + _HEADER_ROOM)
        for name in [name for name, tensor in self._held.items() if tensor.nbytes % _ALIGNMENT == 0]:
            tensor = self._held.pop(name)
            self._enter(name, tensor)
            self._file.write(_bytes(tensor))
        self._held_size = sum(tensor.nbytes for tensor in self._held.values())

    def _enter(self, name: str, tensor: torch.Tensor) -> None:
        """Enter a tensor into the header, as the next in the file."""
        begin, self._written = self._written, self._written + tensor.nbytes
        shape = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        self._entries[name] = {**shape, "data_offsets": [begin, self._written]}


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _entry_size(name: str, tensor: torch.Tensor) -> int:
    """At least the bytes of a tensor in the header."""
    return len(json.dumps(name)) + len(json.dumps(list(tensor.shape))) + 100

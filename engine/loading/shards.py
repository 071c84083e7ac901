"""Writes safetensors tensor by tensor: one file, or several files of at most 4 GiB and an index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_SHARD_BYTES = 4 << 30


class ShardWriter:
    """Writes named tensors to a folder; keeps one shard in memory."""

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._shard: dict[str, torch.Tensor] = {}
        self._size = self._total = 0
        self._written: list[list[str]] = []  # the names in each file

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor."""
        if self._size and self._size + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._shard[name] = tensor.contiguous()
        self._size += tensor.nbytes
        self._total += tensor.nbytes

    def finish(self) -> int:
        """Write the last shard, and an index if there are several files; the size of all tensors in bytes."""
        self._flush()
        if len(self._written) == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return self._total
        weight_map = {}
        for number, names in enumerate(self._written):
            file = f"model-{number + 1:05}-of-{len(self._written):05}.safetensors"
            self._part(number).rename(self._folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return self._total

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"

    def _flush(self) -> None:
        part = self._part(len(self._written))
        part.touch()  # a new file has the user's usual mode; save_file would make it private
        mode = part.stat().st_mode
        save_file(self._shard, part, metadata={"format": "pt"})
        part.chmod(mode)
        self._written.append(list(self._shard))
        self._shard, self._size = {}, 0

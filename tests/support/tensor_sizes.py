"""The largest tensor that a computation makes, and how much memory it takes, for tests of what must not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class LargestTensor(TorchDispatchMode):
    """`with LargestTensor() as largest: ...`; then `largest.numel` is the most values of one tensor, in either pass."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


class PeakMemory:
    """`with PeakMemory() as peak: ...`; then `peak.bytes` is by how much the process grew at most, as Linux counts."""

    bytes = 0

    def __enter__(self) -> PeakMemory:
        _CLEAR.write_text("5")  # the high-water mark begins anew
        self._before = _kib("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = (_kib("VmHWM") - self._before) * 1024


def _kib(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])

"""Memory for packed weights, in large pages where the system grants them.

A step reads every weight once, and with pages of 4 KiB finding them takes a tenth of that time or more.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch

_SLAB = 64 << 20  # taken from the system at once; what is never written costs nothing
_ALIGNMENT = 64


class _Slab:
    """A piece of memory that tensors are cut from, one after another; it goes when the last of them does."""

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # large pages are for private ones
        with contextlib.suppress(OSError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self.used = 0


_slab: _Slab | None = None


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor, not initialised, that will be kept."""
    global _slab
    size = math.prod(shape) * dtype.itemsize
    if _slab is None or _slab.used + size > len(_slab.bytes):
        _slab = _Slab(max(_SLAB, size))
    first = _slab.used
    _slab.used += size + -size % _ALIGNMENT
    return _slab.bytes[first : first + size].view(dtype).view(shape)

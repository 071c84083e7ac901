"""Capture and replay of native kernels, as CUDA graphs do it: the tensors of a captured step, and what it may do.

A replay runs native kernels alone (graph.h). What else a step computes would be missing in it, so torch's own
operations are refused during a capture, unless they only look at a tensor in another shape. New tensors get memory from
a pool that no one else takes, so that they stay where the captured kernels look for them.
"""

import contextlib
import math
import mmap
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import native

_POOL = 1 << 30  # bytes; only what is written takes memory
_MAP_NORESERVE = 0x4000  # Linux on x86-64, as the native kernels are
_ALIGNMENT = 64
_VIEWS = {  # operations that compute nothing,
    *("aten::view", "aten::_unsafe_view", "aten::_reshape_alias", "aten::as_strided", "aten::alias", "aten::detach"),
    *("aten::select.int", "aten::slice.Tensor", "aten::split.Tensor", "aten::split_with_sizes", "aten::unbind.int"),
    *("aten::transpose.int", "aten::unsqueeze", "aten::expand"),
}
_VIEWS_OR_COPIES = {"aten::reshape", "aten::contiguous", "aten::to.dtype", "aten::flatten.using_ints"}  # and that may


class NotCapturableError(RuntimeError):
    """A step does something that its replay would not do."""


class MemoryPool:
    """Memory for the tensors of captured graphs, one of which runs at a time; what a tensor leaves is reused."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._bytes = np.frombuffer(mmap.mmap(-1, _POOL, flags=flags), dtype=np.uint8)
        self._free = [(0, _POOL)]  # (first byte, size), by place

    @property
    def memory(self) -> torch.Tensor:
        """All of it."""
        return torch.from_numpy(self._bytes)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor, not initialised."""
        size = max(1, math.prod(shape)) * dtype.itemsize
        size += -size % _ALIGNMENT
        index = next((i for i, (_, room) in enumerate(self._free) if room >= size), None)
        if index is None:
            raise NotCapturableError(f"no memory for a tensor of {size} bytes")
        first, room = self._free[index]
        self._free[index : index + 1] = [(first + size, room - size)] if room > size else []
        part = self._bytes[first : first + size]
        weakref.finalize(part, self._release, first, size).atexit = False
        return torch.frombuffer(part, dtype=dtype)[: math.prod(shape)].view(shape)

    def _release(self, first: int, size: int) -> None:
        holes = sorted([*self._free, (first, size)])
        self._free = holes[:1]
        for start, room in holes[1:]:
            last_start, last_room = self._free[-1]
            if last_start + last_room == start:
                self._free[-1] = (last_start, last_room + room)
            else:
                self._free.append((start, room))


class Graph:
    """A captured step of native kernels."""

    def __init__(self, pool: MemoryPool, num_tokens: int, num_rows: int | None = None) -> None:
        """Room for a capture.

        Args:
            pool: memory of the tensors that are made during the capture.
            num_tokens: rows of each captured operation.
            num_rows: rows of `take_rows` and of the operations after it, where there are any.
        """
        self._pool, self._graph = pool, native.library.Graph(num_tokens, num_rows, pool.memory)

    def __len__(self) -> int:
        """How many operations."""
        return len(self._graph)

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Within it, native kernels that this thread calls are added to the graph instead of run.

        Raises:
            NotCapturableError: an operation computes with torch, or on another number of rows.
        """
        self._graph.begin()
        try:
            with _CaptureMode(self._pool):
                yield
        finally:
            self._graph.end()

    def replay(self, num_tokens: int, num_rows: int | None = None) -> None:
        """Run the kernels on the first rows of the captured tensors, on whatever these hold now."""
        self._graph.replay(num_tokens, num_rows)


class _CaptureMode(TorchDispatchMode):
    """Sees each of torch's operations: new tensors are made from the pool, and what computes is refused."""

    def __init__(self, pool: MemoryPool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pool = pool

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Called by torch: as nothing is compiled here, not to import its compiler, which would take a second."""
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match name := operation.name():
            case "aten::empty.memory_format":
                return self._pool.empty(tuple(args[0]), kwargs.get("dtype") or torch.get_default_dtype())
            case "aten::new_empty":
                return self._pool.empty(tuple(args[1]), kwargs.get("dtype") or args[0].dtype)
            case "aten::empty_like":
                return self._pool.empty(args[0].shape, kwargs.get("dtype") or args[0].dtype)
        if name not in _VIEWS | _VIEWS_OR_COPIES:
            raise NotCapturableError(f"{name} is no native kernel")
        result = operation(*args, **kwargs)
        if name in _VIEWS_OR_COPIES and result.data_ptr() != args[0].data_ptr():
            raise NotCapturableError(f"{name} is a copy here")
        return result

"""Calls of native functions, recorded while they are made for the first time, and then made again by one call.

A step of decoding sequences makes the same calls as the last one of so many sequences did, with the same addresses
where its memory is the same: between two of them Python and torch cost as much as the smaller ones themselves. So, as
with CUDA graphs: `record(function)` runs a function whose work is all done by native functions, keeps the calls that it
makes, and gives it memory for its tensors that no one else takes. `Recording.replay` makes the calls
again, on whatever the tensors hold that it was given from outside.

A function that does anything else with its tensors than looking at them in another shape cannot be recorded, and is
found out: such an operation would be missing in the replay.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import native

_WORDS, _NUMBERS = 20, 2  # of a call's arguments at most (recording.cpp)
_ARENA = 1 << 30  # bytes; only what is written takes memory
_MAP_NORESERVE = 0x4000  # Linux on x86-64, as the native libraries are
_ALIGNMENT = 64
_LOOKS = {  # operations that compute nothing,
    *("aten::view", "aten::_unsafe_view", "aten::_reshape_alias", "aten::as_strided", "aten::alias", "aten::detach"),
    *("aten::select.int", "aten::slice.Tensor", "aten::split.Tensor", "aten::split_with_sizes", "aten::unbind.int"),
    *("aten::transpose.int", "aten::unsqueeze", "aten::expand"),
}
_LOOKS_OR_COPIES = {"aten::reshape", "aten::contiguous", "aten::to.dtype", "aten::flatten.using_ints"}  # and that may


class UnrecordableError(RuntimeError):
    """The function does something that a replay would not do."""


class _Call(ctypes.Structure):
    """recording.cpp's Call."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("words", ctypes.c_int64 * _WORDS),
        ("numbers", ctypes.c_float * _NUMBERS),
    )


class _Arena:
    """Memory for recorded functions' tensors, given back when they go, and taken by the next that fits."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._bytes = np.frombuffer(mmap.mmap(-1, _ARENA, flags=flags), dtype=np.uint8)
        self._free = [(0, _ARENA)]  # (first byte, size), by place

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        size = max(1, math.prod(shape)) * dtype.itemsize
        size += -size % _ALIGNMENT
        index, (first, room) = next(((i, hole) for i, hole in enumerate(self._free) if hole[1] >= size), (0, (0, 0)))
        if room < size:
            raise UnrecordableError(f"no memory for a tensor of {size} bytes")
        self._free[index : index + 1] = [(first + size, room - size)] if room > size else []
        part = self._bytes[first : first + size]
        weakref.finalize(part, self._give_back, first, size).atexit = False
        return torch.frombuffer(part, dtype=dtype)[: math.prod(shape)].view(shape)

    def _give_back(self, first: int, size: int) -> None:
        holes = sorted([*self._free, (first, size)])
        self._free = holes[:1]
        for start, room in holes[1:]:
            last_start, last_room = self._free[-1]
            if last_start + last_room == start:
                self._free[-1] = (last_start, last_room + room)
            else:
                self._free.append((start, room))

    def at(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """What makes a tensor of the same place and shape, which takes no memory."""
        first = tensor.data_ptr() - self._bytes.ctypes.data
        shape, dtype = tensor.shape, tensor.dtype
        assert tensor.is_contiguous()
        assert 0 <= first < _ARENA, "it lies elsewhere"
        return lambda: torch.frombuffer(self._bytes, dtype=dtype, count=math.prod(shape), offset=first).view(shape)


class _Watch(TorchDispatchMode):
    """Sees each of torch's operations: new tensors get memory of the arena, and what computes is refused."""

    def __init__(self, arena: _Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._empty = arena.empty

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match name := operation.name():
            case "aten::empty.memory_format":
                return self._empty(*args[0], dtype=kwargs.get("dtype") or torch.get_default_dtype())
            case "aten::new_empty":
                return self._empty(*args[1], dtype=kwargs.get("dtype") or args[0].dtype)
            case "aten::empty_like":
                return self._empty(*args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name not in _LOOKS | _LOOKS_OR_COPIES:
            raise UnrecordableError(f"{name} is no native function")
        result = operation(*args, **kwargs)
        if name in _LOOKS_OR_COPIES and result.data_ptr() != args[0].data_ptr():
            raise UnrecordableError(f"{name} is a copy here")
        return result


class Recording:
    """The calls of a function, in order; see `record`."""

    def __init__(self, calls: list[native.Note], result: Callable[[], torch.Tensor]) -> None:
        self._calls = (_Call * len(calls))()
        self._result = result
        for entry, (function, types, args) in zip(self._calls, calls, strict=True):
            entry.function = ctypes.cast(function, ctypes.c_void_p)
            words = [arg or 0 for kind, arg in zip(types, args, strict=True) if kind is not native.FLOAT]
            numbers = [arg for kind, arg in zip(types, args, strict=True) if kind is native.FLOAT]
            entry.words[: len(words)], entry.numbers[: len(numbers)] = words, numbers
        self._run = native.plain_function("run_calls", native.POINTER, native.INT)

    def replay(self) -> torch.Tensor:
        """Make the calls again. The result is valid until the next replay of any recording."""
        self._run(ctypes.addressof(self._calls), len(self._calls))
        return self._result()


class Recorder:
    """Makes recordings that share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._arena = _Arena()

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[Recording, torch.Tensor]:
        """Run a function and record it; also returns its result, valid until the next replay of any recording.

        What it reads from outside must live and stay in its place as long as the recording.

        Raises:
            UnrecordableError: it computes with other than native functions.
        """
        calls: list[native.Note] = []
        with native.noting(calls.append), _Watch(self._arena):
            result = function()
        result_at = self._arena.at(result)
        return Recording(calls, result_at), result_at()

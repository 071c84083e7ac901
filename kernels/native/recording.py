"""Calls of native functions, recorded once, and then made again by one call, for as many rows as wanted.

A step makes the same calls as the one before, only for more or fewer tokens: between two of them Python and torch cost
as much as the smaller ones themselves. So, much as with CUDA graphs: `record(function, most_rows)` runs a function
whose work is all done by native functions, keeps the calls that it would make instead of making them, and gives it
memory for its tensors that no one else takes. `Recording.replay(num_rows)` makes the calls, on whatever the tensors
hold that it was given from outside.

That the number of rows is free comes from recording the function for three of them, with its tensors at the same
places: an argument that differs must grow by the same with each row. A function that does anything else with its
tensors than looking at them in another shape cannot be recorded, and is found out: such an operation would be missing
in the replay.
"""

from __future__ import annotations

import ctypes
import itertools
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


_CALL = np.dtype(  # recording.cpp's Call
    [
        ("function", np.uint64),
        ("words", np.int64, _WORDS),
        ("words_per_row", np.int64, _WORDS),
        ("numbers", np.float32, _NUMBERS),
    ]
)
_Empty = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


class _Arena:
    """Memory for recorded functions' tensors, given back when they go, and taken by the next that fits."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._bytes = np.frombuffer(mmap.mmap(-1, _ARENA, flags=flags), dtype=np.uint8)
        self._free = [(0, _ARENA)]  # (first byte, size), by place

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
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

    def place(self, tensor: torch.Tensor) -> int:
        """Where a tensor begins."""
        first = tensor.data_ptr() - self._bytes.ctypes.data
        assert 0 <= first < _ARENA, "it lies elsewhere"
        return first

    def at(self, first: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor at a place, which takes no memory."""
        return torch.frombuffer(self._bytes, dtype=dtype, count=math.prod(shape), offset=first).view(shape)


class _Watch(TorchDispatchMode):
    """Sees each of torch's operations: new tensors are made by `empty`, and what computes is refused."""

    def __init__(self, empty: _Empty) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._empty = empty

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Called by torch: as nothing is compiled here, not to import its compiler, which would take a second."""
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match name := operation.name():
            case "aten::empty.memory_format":
                return self._empty(tuple(args[0]), kwargs.get("dtype") or torch.get_default_dtype())
            case "aten::new_empty":
                return self._empty(tuple(args[1]), kwargs.get("dtype") or args[0].dtype)
            case "aten::empty_like":
                return self._empty(args[0].shape, kwargs.get("dtype") or args[0].dtype)
        if name not in _LOOKS | _LOOKS_OR_COPIES:
            raise UnrecordableError(f"{name} is no native function")
        result = operation(*args, **kwargs)
        if name in _LOOKS_OR_COPIES and result.data_ptr() != args[0].data_ptr():
            raise UnrecordableError(f"{name} is a copy here")
        return result


class Recording:
    """The calls of a function, in order; see `Recorder.record`.

    Attributes:
        result: where the function's result lies, with room for the most rows.
    """

    def __init__(self, calls: np.ndarray, result: torch.Tensor) -> None:
        self.result = result
        self._calls = calls
        self._run = native.plain_function("run_calls", native.POINTER, native.INT, native.INT)

    def __len__(self) -> int:
        """How many calls."""
        return len(self._calls)

    def replay(self, num_rows: int) -> torch.Tensor:
        """Make the calls for so many rows; the result, which is valid until the next time."""
        self._run(self._calls.ctypes.data, len(self._calls), num_rows)
        return self.result[:num_rows]


class Recorder:
    """Makes recordings that share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._arena = _Arena()

    def record(self, function: Callable[[int], torch.Tensor], most_rows: int) -> Recording:
        """Record `function(num_rows)`, whose result has so many rows, for any number from 1 to most_rows (4 or more).

        What it reads from outside must have room for most_rows, and stay in its place as long as the recording lives.

        Raises:
            UnrecordableError: it computes with other than native functions, or does not do the same for every row.
        """
        assert most_rows >= 4
        places: list[int] = []

        def make(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            tensor = self._arena.empty(shape, dtype)
            places.append(self._arena.place(tensor))
            return tensor

        calls, result = _note(function, most_rows, make)
        self._arena.place(result)
        assert len(result) == most_rows

        def note_again(num_rows: int) -> np.ndarray:
            free = itertools.chain(places, itertools.repeat(0))
            calls, again = _note(function, num_rows, lambda shape, dtype: self._arena.at(next(free), shape, dtype))
            if (again.data_ptr(), again.shape) != (result.data_ptr(), (num_rows, *result.shape[1:])):
                raise UnrecordableError("its result for fewer rows is not the beginning of that for more")
            return calls

        others = {num_rows: note_again(num_rows) for num_rows in (most_rows - 1, 2)}
        return Recording(_in_rows({most_rows: calls, **others}), result)


def _note(function: Callable[[int], torch.Tensor], num_rows: int, empty: _Empty) -> tuple[np.ndarray, torch.Tensor]:
    """The calls that a function makes for so many rows, and where its result lies."""
    notes: list[native.Note] = []
    with native.noting(notes.append), _Watch(empty):
        result = function(num_rows)
    calls = np.zeros(len(notes), _CALL)
    for call, (called, types, args) in zip(calls, notes, strict=True):
        words = [arg or 0 for kind, arg in zip(types, args, strict=True) if kind is not native.FLOAT]
        numbers = [arg for kind, arg in zip(types, args, strict=True) if kind is native.FLOAT]
        if len(words) > _WORDS or len(numbers) > _NUMBERS:
            raise UnrecordableError(f"a call has {len(words)} words and {len(numbers)} numbers")
        call["function"] = ctypes.cast(called, ctypes.c_void_p).value or 0
        call["words"][: len(words)], call["numbers"][: len(numbers)] = words, numbers
    return calls, result


def _in_rows(noted: dict[int, np.ndarray]) -> np.ndarray:
    """Calls for any number of rows, from those for some numbers, of which the first two are neighbours."""
    (most, calls), (_, fewer), *_ = noted.items()
    if any(len(others) != len(calls) for others in noted.values()):
        raise UnrecordableError("it makes other calls for fewer rows")
    per_row = calls["words"] - fewer["words"]
    calls["words_per_row"] = per_row
    calls["words"] -= most * per_row
    for num_rows, others in noted.items():
        made = calls.copy()
        made["words"] += num_rows * per_row
        made["words_per_row"] = 0
        if others is not calls and not np.array_equal(made, others):
            raise UnrecordableError("its calls for more rows are others than those for fewer, row by row")
    return calls

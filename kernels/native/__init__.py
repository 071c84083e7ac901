"""The native CPU kernels: finding the library for this CPU, and binding its functions to torch tensors.

The libraries are C++ behind plain C (kernels/*/native.cpp, built by kernels.native.build), called through ctypes with
pointers; they know nothing of torch, and have threads of their own (pool.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch  # before any library of ours: see the docstring

from kernels.native.build import ISAS, library_path

_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}

POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@functools.cache
def load(isa: str) -> ctypes.CDLL | None:
    """The library for an instruction set (kernels.native.build.ISAS), or None where it is not built or cannot run."""
    if platform.machine() != "x86_64" or not (path := library_path(isa)).exists():
        return None
    native = ctypes.CDLL(str(path))
    return native if native.start() == 0 else None


def isa() -> str | None:
    """The instruction set of the best library that this CPU can run and that was built, or None."""
    return next((name for name in ISAS if load(name) is not None), None)


def library() -> ctypes.CDLL | None:
    """The best library that this CPU can run and that was built, or None."""
    best = isa()
    return None if best is None else load(best)


def set_threads(count: int) -> None:
    """How many threads the library computes with, the calling one included; they start when first needed."""
    if (native := library()) is not None:
        native.set_threads(ctypes.c_int64(count))


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the native kernels cannot run, or None."""
    if device.type != "cpu":
        return f"they are for a CPU, and the device is {device.type}"
    if dtype not in _SUFFIX:
        return f"they compute in bfloat16 and float32, and the dtype is {dtype}"
    if library() is None:
        return (
            "they are not built for this CPU (they need a C++ compiler when the package is installed: apt install g++)"
        )
    return None


def function(name: str, dtype: torch.dtype, *arguments: type) -> Callable[..., int]:
    """One of the library's functions for a dtype, with its argument types."""
    return plain_function(f"{name}_{_SUFFIX[dtype]}", *arguments)


def plain_function(name: str, *arguments: type) -> Callable[..., int]:
    """One of those that have none."""
    native = library()
    assert native is not None, "callers ask obstacle() first"
    bound = getattr(native, name)
    bound.argtypes, bound.restype = arguments, ctypes.c_int

    def call(*values: Any) -> int:
        note: Callable[[Note], None] | None = getattr(_thread, "note", None)
        if note is None:
            return bound(*values)  # type: ignore[no-any-return]
        note((bound, arguments, values))
        return 0

    return call


Note = tuple[Any, tuple[type, ...], tuple[Any, ...]]  # a function, its argument types, the arguments
_thread = threading.local()  # its `note` takes the calls of a thread that are noted


@contextlib.contextmanager
def noting(note: Callable[[Note], None]) -> Iterator[None]:
    """While it lasts, calls of functions by this thread are noted instead of made (kernels.native.recording)."""
    _thread.note = note
    try:
        yield
    finally:
        _thread.note = None


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's data begin; None (a null pointer) of None."""
    return None if tensor is None else tensor.data_ptr()


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """What weights for products with `dtype` are packed as (kernels/native/panels.h)."""
    native = library()
    assert native is not None, "callers ask obstacle() first"
    return dtype if native.bf16_operand_size() == 2 else torch.float32


def panels(weight_NKM: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices [K, M] as panels [M / 16, K / W, 16, W], K filled up with zeros to 16 W and M to 16 (panels.h)."""
    width = 4 // dtype.itemsize
    num, num_in, num_out = weight_NKM.shape
    inner, columns = -(-num_in // (16 * width)) * 16 * width, -(-num_out // 16) * 16
    padded = torch.nn.functional.pad(weight_NKM.to(dtype), (0, columns - num_out, 0, inner - num_in))
    return padded.view(num, inner // width, width, columns // 16, 16).permute(0, 3, 1, 4, 2).contiguous()

"""The native CPU kernels: finding the library for this CPU, and binding its functions to torch tensors.

The libraries are C++ behind plain C (kernels/*/cpu.cpp, built by kernels.native.build), called through ctypes with
pointers; they know nothing of torch. They share torch's OpenMP threads: both want libgomp.so.1, and torch has loaded
its own first.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable

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
    return bound  # type: ignore[no-any-return]

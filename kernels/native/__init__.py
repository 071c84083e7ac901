"""The native CPU kernels: finding the library for this CPU, and binding its functions to torch tensors.

The libraries are C++ behind plain C (kernels/*/cpu.cpp, built by kernels.native.build), called through ctypes with
pointers; they know nothing of torch. They share torch's OpenMP threads: both want libgomp.so.1, and torch has loaded
its own first.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch  # before any library of ours: see the docstring

from kernels.native.build import library_path

_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}
_CAPABILITY = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}  # torch's word for the CPU -> libraries, best first

POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@functools.cache
def library() -> ctypes.CDLL | None:
    """The best library that this CPU can run and that was built, or None."""
    for isa in _CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), ()):
        if (path := library_path(isa)).exists():
            return ctypes.CDLL(str(path))
    return None


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
    native = library()
    assert native is not None, "callers ask obstacle() first"
    bound = getattr(native, f"{name}_{_SUFFIX[dtype]}")
    bound.argtypes, bound.restype = arguments, ctypes.c_int
    return bound  # type: ignore[no-any-return]

"""The native CPU kernels: which instruction sets there are, and the extension module for this CPU.

The modules are C++ behind nanobind (kernels/*/native.cpp, built by kernels.native.build), one for each instruction set.
They have threads of their own (pool.h), and read torch's tensors without torch's headers (binding.h).
"""

import functools
import importlib
import logging
import platform
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from kernels.native.build import ISAS, is_outdated, module_path

__all__ = ["ISA", "ISAS", "library", "load", "obstacle", "set_threads"]

logger = logging.getLogger(__name__)


@functools.cache
def load(isa: str) -> ModuleType | None:
    """The module for an instruction set (kernels.native.build.ISAS), or None where it is not built or cannot run."""
    if platform.machine() != "x86_64" or not module_path(isa).exists():
        return None
    try:
        module = importlib.import_module(f"kernels.native._kernels_{isa}")
    except ImportError as error:  # built for another Python, or half written
        logger.warning("%s cannot be loaded: %s", module_path(isa).name, error)
        return None
    return module if module.is_supported else None


if is_outdated():
    logger.warning("the native kernels are older than their sources; build them: python kernels/native/build.py")

ISA: str | None = next((name for name in ISAS if load(name) is not None), None)
"""The best instruction set that this CPU can run and that was built, or None."""

if TYPE_CHECKING:
    from kernels.native import _kernels as library
else:
    library = load(ISA) if ISA else None


def set_threads(count: int) -> None:
    """How many threads the kernels compute with, the calling one included; they start when first needed."""
    if ISA is not None:
        library.set_threads(count)


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the native kernels cannot run, or None."""
    if device.type != "cpu":
        return f"they are for a CPU, and the device is {device.type}"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"they compute in bfloat16 and float32, and the dtype is {dtype}"
    if ISA is None:
        return (
            "they are not built for this CPU (when the package is installed, they need a C++ compiler and Python's "
            "headers: apt install g++ python3-dev)"
        )
    return None

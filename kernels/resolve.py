"""Which backend computes: chosen once, at start."""

import importlib.util
import logging

import torch

from kernels import native
from kernels.backends import FlashAttnOps, NativeOps, ReferenceOps, TorchOps
from kernels.ops import Ops

logger = logging.getLogger(__name__)


BACKENDS: dict[str, type[Ops]] = {  # written out, so that mypy sees what a class lacks
    "reference": ReferenceOps,
    "torch": TorchOps,
    "native": NativeOps,
    "flash-attn": FlashAttnOps,
}


class KernelUnavailableError(ValueError):
    """A backend was asked for by name and this machine cannot run it."""


def resolve(choice: str, device: torch.device, dtype: torch.dtype) -> Ops:
    """Make the operations: `auto`, or a backend by name.

    Raises:
        KernelUnavailableError: the named backend cannot run here; auto falls back to torch with a warning instead.
    """
    obstacles = {"native": native.obstacle(device, dtype), "flash-attn": _flash_obstacle(device, dtype)}
    if choice == "auto":
        choice = "flash-attn" if device.type == "cuda" else "native"
        if obstacle := obstacles[choice]:
            logger.warning("the %s kernels cannot run, torch's operators do instead: %s", choice, obstacle)
            choice = "torch"
    elif obstacle := obstacles.get(choice):
        raise KernelUnavailableError(f"--kernels {choice} cannot run here: {obstacle}")
    return BACKENDS[choice](dtype)


def _flash_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs a GPU, and the device is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16, and the dtype is {dtype}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed (pip install 'deepseek-serve[gpu]')"
    return None

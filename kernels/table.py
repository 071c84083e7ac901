"""Which version of each operation runs: decided once, at start, logged, and passed down to the model."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from kernels import linear, rms_norm, rotary, silu_mul, store_kv
from kernels.linear import onednn
from kernels.paged_attention import PagedAttention
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch import TorchAttention

logger = logging.getLogger(__name__)
Tensor = torch.Tensor


class KernelUnavailableError(ValueError):
    """A kernel was asked for by name and this machine cannot run it."""


@dataclass(frozen=True)
class KernelTable:
    """One version of each operation; the contracts stand in kernels/<op>/__init__.py."""

    names: dict[str, str]
    linear: Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    attention: PagedAttention


def resolve(choice: str, device: torch.device, dtype: torch.dtype) -> KernelTable:
    """Pick kernels: `auto`, or `reference`, `torch` or `flash-attn` by name.

    Raises:
        KernelUnavailableError: the named choice cannot run here; auto falls back with a warning instead.
    """
    simple = "reference" if choice == "reference" else "torch"
    names = dict.fromkeys(("linear", "rms_norm", "rotary", "silu_mul", "store_kv", "attention"), simple)
    attention: PagedAttention = ReferenceAttention() if choice == "reference" else TorchAttention(dtype)
    pack = getattr(linear, simple).pack

    if choice == "auto" and device.type == "cpu" and dtype is torch.bfloat16 and onednn.is_available():
        names["linear"], pack = "onednn", onednn.pack
    if choice == "flash-attn" or (choice == "auto" and device.type == "cuda"):
        if obstacle := _flash_obstacle(device, dtype):
            if choice == "flash-attn":
                raise KernelUnavailableError(f"--kernels flash-attn cannot run here: {obstacle}")
            logger.warning("attention falls back to torch: %s", obstacle)
        else:
            names["attention"], attention = "flash-attn", FlashAttention()

    def version(op: ModuleType) -> ModuleType:
        module: ModuleType = getattr(op, simple)
        return module

    return KernelTable(
        names=names,
        linear=pack,
        rms_norm=version(rms_norm).rms_norm,
        add_rms_norm=version(rms_norm).add_rms_norm,
        rotary=version(rotary).rotary,
        silu_mul=version(silu_mul).silu_mul,
        store_kv=version(store_kv).store_kv,
        attention=attention,
    )


def _flash_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs a GPU, and the device is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16, and the dtype is {dtype}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed (pip install 'deepseek-serve[gpu]')"
    return None

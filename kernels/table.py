"""Which version of each operation runs: decided once, at start, logged, and passed down to the model."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels import (
    draw,
    grouped_mlp,
    latent_attention,
    lightning_indexer,
    linear,
    linear_int8,
    native,
    rms_norm,
    rotary,
    silu_mul,
    store_kv,
)
from kernels.linear import onednn
from kernels.linear_int8 import QuantizedWeight
from kernels.paged_attention import LatentAttention, PagedAttention
from kernels.paged_attention.cpu import HEAD_DIMS, CPUAttention
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch import TorchAttention
from kernels.rms_norm.cpu import RMSNorm

logger = logging.getLogger(__name__)
Tensor = torch.Tensor


class KernelUnavailableError(ValueError):
    """A kernel was asked for by name and this machine cannot run it."""


@dataclass(frozen=True)
class KernelTable:
    """One version of each operation; the contracts stand in kernels/<op>/__init__.py."""

    name: str
    linear: Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]
    linear_int8: Callable[[QuantizedWeight, Tensor | None], Callable[[Tensor], Tensor]]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    attention: PagedAttention
    latent_attention: LatentAttention
    select: Callable[[Tensor, Tensor, Tensor, Any, int], Any]
    pack_experts: Callable[..., Callable[[Tensor, Tensor, Tensor], Tensor]]
    draw: Callable[[Tensor, list[float], list[float]], list[int]]

    def pack_linear(self, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """A linear layer of either kind."""
        if isinstance(weight, QuantizedWeight):
            return self.linear_int8(weight, bias)
        return self.linear(weight, bias)


def resolve(choice: str, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> KernelTable:
    """Pick kernels: `auto`, or `reference`, `torch`, `native` or `flash-attn` by name.

    `native` is this project's C++ (with oneDNN's packed linear layers in bfloat16), `flash-attn` torch's operators with
    flash-attn's attention. head_dim is that of plain attention; None for a model that has only latent attention.

    Raises:
        KernelUnavailableError: the named choice cannot run here; auto falls back to torch with a warning instead.
    """
    obstacles = {"native": _native_obstacle(device, dtype, head_dim), "flash-attn": _flash_obstacle(device, dtype)}
    if choice == "auto":
        choice = "flash-attn" if device.type == "cuda" else "native"
        if obstacle := obstacles[choice]:
            logger.warning("the %s kernels cannot run, torch's operators do instead: %s", choice, obstacle)
            choice = "torch"
    elif obstacle := obstacles.get(choice):
        raise KernelUnavailableError(f"--kernels {choice} cannot run here: {obstacle}")
    return {"reference": _reference, "torch": _torch, "native": _native, "flash-attn": _flash}[choice](dtype)


def _reference(_: torch.dtype) -> KernelTable:
    return KernelTable(
        name="reference",
        linear=linear.reference.pack,
        linear_int8=linear_int8.reference.pack,
        rms_norm=rms_norm.reference.rms_norm,
        add_rms_norm=rms_norm.reference.add_rms_norm,
        rotary=rotary.reference.rotary,
        silu_mul=silu_mul.reference.silu_mul,
        store_kv=store_kv.reference.store_kv,
        attention=ReferenceAttention(),
        latent_attention=latent_attention.reference.ReferenceLatentAttention(),
        select=lightning_indexer.reference.select,
        pack_experts=grouped_mlp.reference.pack,
        draw=draw.reference.draw,
    )


def _torch(dtype: torch.dtype) -> KernelTable:
    return KernelTable(
        name="torch",
        linear=linear.torch.pack,
        linear_int8=linear_int8.torch.pack,
        rms_norm=rms_norm.torch.rms_norm,
        add_rms_norm=rms_norm.torch.add_rms_norm,
        rotary=rotary.torch.rotary,
        silu_mul=silu_mul.torch.silu_mul,
        store_kv=store_kv.torch.store_kv,
        attention=TorchAttention(dtype),
        latent_attention=latent_attention.torch.TorchLatentAttention(dtype),
        select=lightning_indexer.torch.select,
        pack_experts=grouped_mlp.torch.pack,
        draw=draw.torch.draw,
    )


def _native(dtype: torch.dtype) -> KernelTable:
    norm = RMSNorm(dtype)
    packs = dtype is torch.bfloat16 and onednn.is_available()
    return replace(
        _torch(dtype),
        name="native",
        linear=onednn.pack if packs else linear.torch.pack,
        linear_int8=linear_int8.cpu.bind(dtype),
        rms_norm=norm.rms_norm,
        add_rms_norm=norm.add_rms_norm,
        rotary=rotary.cpu.bind(dtype),
        silu_mul=silu_mul.cpu.bind(dtype),
        attention=CPUAttention(dtype),
        pack_experts=grouped_mlp.cpu.bind(dtype),
        draw=draw.cpu.bind(dtype),
    )


def _flash(dtype: torch.dtype) -> KernelTable:
    return replace(_torch(dtype), name="flash-attn", attention=FlashAttention())


def _native_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    if head_dim is not None and head_dim not in HEAD_DIMS:
        return f"they are compiled for head_dim {', '.join(map(str, HEAD_DIMS))}, and the model's is {head_dim}"
    return native.obstacle(device, dtype)


def _flash_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs a GPU, and the device is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16, and the dtype is {dtype}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed (pip install 'deepseek-serve[gpu]')"
    return None

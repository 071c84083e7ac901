"""Which version of each operation runs: decided once, at start, logged, and passed down to the model."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels import (
    causal_attention,
    draw,
    grouped_mlp,
    head_linear,
    latent_attention,
    lightning_indexer,
    linear,
    linear_int8,
    mlp,
    native,
    rms_norm,
    rotary,
    routing,
    silu_mul,
    store_kv,
)
from kernels.kv_cache import Cache
from kernels.latent_attention.native import NativeLatentAttention
from kernels.linear_int8 import QuantizedWeight
from kernels.paged_attention import LatentAttention, PagedAttention
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.native import NativeAttention
from kernels.paged_attention.reference import ReferenceAttention
from kernels.paged_attention.torch_ops import TorchAttention
from kernels.routing import RoutingRule

logger = logging.getLogger(__name__)
Tensor = torch.Tensor


class KernelUnavailableError(ValueError):
    """A kernel was asked for by name and this machine cannot run it."""


@dataclass(frozen=True)
class KernelTable:
    """One version of each operation; the contracts stand in kernels/<op>/__init__.py."""

    name: str
    linear: Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]
    linear_f32: Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]  # weight and y fp32, x of either dtype
    head_linear: Callable[[Tensor], Callable[..., None]]
    linear_int8: Callable[[QuantizedWeight, Tensor | None], Callable[[Tensor], Tensor]]
    logits: Callable[[Tensor | QuantizedWeight], Callable[[Tensor], Tensor]]  # a linear layer whose y is fp32
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary: Callable[..., Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    store_kv: Callable[[Tensor, Tensor, Tensor], None]
    rotate_and_store: Callable[[Tensor, Tensor, Tensor, Cache, Cache, Tensor], Tensor]
    store_latents: Callable[[Tensor, Tensor, float, Tensor, Tensor, Cache, Tensor], None]
    attention: PagedAttention
    latent_attention: LatentAttention
    selective_attention: LatentAttention  # of latents, where `select` narrows what queries see
    causal_attention: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    select: Callable[[Tensor, Tensor, Tensor, Any, int], Any]
    route: Callable[[Tensor, Tensor | None, RoutingRule], tuple[Tensor, Tensor]]
    pack_mlp: Callable[..., Callable[..., Tensor]]
    pack_experts: Callable[..., Callable[[Tensor, Tensor, Tensor], Tensor]]
    draw: Callable[[Tensor, list[float], list[float]], list[int]]

    def pack_linear(self, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """A linear layer of either kind."""
        if isinstance(weight, QuantizedWeight):
            return self.linear_int8(weight, bias)
        return self.linear(weight, bias)


def resolve(choice: str, device: torch.device, dtype: torch.dtype) -> KernelTable:
    """Pick kernels: `auto`, or `reference`, `torch`, `native` or `flash-attn` by name.

    `native` is this project's C++, `flash-attn` torch's operators with flash-attn's attention.

    Raises:
        KernelUnavailableError: the named choice cannot run here; auto falls back to torch with a warning instead.
    """
    obstacles = {"native": native.obstacle(device, dtype), "flash-attn": _flash_obstacle(device, dtype)}
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
        linear_f32=linear.reference.pack_f32,
        head_linear=head_linear.reference.pack,
        linear_int8=linear_int8.reference.pack,
        logits=_widened(linear.reference.pack, linear_int8.reference.pack),
        rms_norm=rms_norm.reference.rms_norm,
        add_rms_norm=rms_norm.reference.add_rms_norm,
        rotary=rotary.reference.rotary,
        silu_mul=silu_mul.reference.silu_mul,
        store_kv=store_kv.reference.store_kv,
        rotate_and_store=store_kv.reference.rotate_and_store,
        store_latents=store_kv.reference.store_latents,
        attention=ReferenceAttention(),
        latent_attention=latent_attention.reference.ReferenceLatentAttention(),
        selective_attention=latent_attention.reference.ReferenceLatentAttention(),
        causal_attention=causal_attention.reference.attend,
        select=lightning_indexer.reference.select,
        route=routing.reference.route,
        pack_mlp=mlp.torch_ops.pack,
        pack_experts=grouped_mlp.reference.pack,
        draw=draw.reference.draw,
    )


def _torch(dtype: torch.dtype) -> KernelTable:
    return KernelTable(
        name="torch",
        linear=linear.torch_ops.pack,
        linear_f32=linear.torch_ops.pack_f32,
        head_linear=head_linear.torch_ops.pack,
        linear_int8=linear_int8.torch_ops.pack,
        logits=_widened(linear.torch_ops.pack, linear_int8.torch_ops.pack),
        rms_norm=rms_norm.torch_ops.rms_norm,
        add_rms_norm=rms_norm.torch_ops.add_rms_norm,
        rotary=rotary.torch_ops.rotary,
        silu_mul=silu_mul.torch_ops.silu_mul,
        store_kv=store_kv.torch_ops.store_kv,
        rotate_and_store=store_kv.torch_ops.rotate_and_store,
        store_latents=store_kv.torch_ops.store_latents,
        attention=TorchAttention(dtype),
        latent_attention=latent_attention.torch_ops.TorchLatentAttention(dtype),
        selective_attention=latent_attention.torch_ops.TorchLatentAttention(dtype),
        causal_attention=causal_attention.torch_ops.attend,
        select=lightning_indexer.torch_ops.select,
        route=routing.torch_ops.route,
        pack_mlp=mlp.torch_ops.pack,
        pack_experts=grouped_mlp.torch_ops.pack,
        draw=draw.torch_ops.draw,
    )


def _widened(pack: Callable[..., Any], pack_int8: Callable[..., Any]) -> Callable[..., Callable[[Tensor], Tensor]]:
    def pack_logits(weight: Tensor | QuantizedWeight) -> Callable[[Tensor], Tensor]:
        apply = (pack_int8 if isinstance(weight, QuantizedWeight) else pack)(weight, None)
        return lambda x_RH: apply(x_RH).float()

    return pack_logits


def _native(dtype: torch.dtype) -> KernelTable:
    pack_int8 = functools.partial(linear_int8.native.pack, dtype=dtype)
    return replace(
        _torch(dtype),
        name="native",
        linear=linear.native.pack,
        linear_f32=linear.native.pack,
        head_linear=head_linear.native.pack,
        linear_int8=pack_int8,
        # The sums as they are: rounded to bf16, the likeliest tokens' logits would often be equal.
        logits=_widened(
            functools.partial(linear.native.pack, out_dtype=torch.float32),
            functools.partial(pack_int8, out_dtype=torch.float32),
        ),
        rms_norm=rms_norm.native.rms_norm,
        add_rms_norm=rms_norm.native.add_rms_norm,
        rotary=rotary.native.rotary,
        silu_mul=silu_mul.native.silu_mul,
        rotate_and_store=store_kv.native.rotate_and_store,
        store_latents=store_kv.native.store_latents,
        attention=NativeAttention(),
        latent_attention=NativeLatentAttention(),
        causal_attention=causal_attention.native.attend,
        route=routing.native.route,
        pack_mlp=functools.partial(mlp.native.pack, dtype=dtype),
        pack_experts=functools.partial(grouped_mlp.native.pack, dtype=dtype),
        draw=draw.native.draw,
    )


def _flash(dtype: torch.dtype) -> KernelTable:
    return replace(_torch(dtype), name="flash-attn", attention=FlashAttention())


def _flash_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs a GPU, and the device is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16, and the dtype is {dtype}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed (pip install 'deepseek-serve[gpu]')"
    return None

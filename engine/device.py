"""Device, dtype, threads and memory of the machine. No other module asks for them."""

from __future__ import annotations

import os

import torch

from engine import host_memory
from engine.errors import ConfigError
from kernels import native

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GIB = 1 << 30


def resolve_device(choice: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`."""
    has_cuda = torch.cuda.is_available()
    if choice == "cuda" and not has_cuda:
        raise ConfigError("--device is cuda, but torch sees no CUDA device here; valid are auto, cpu")
    return torch.device("cuda" if has_cuda and choice != "cpu" else "cpu")


def resolve_dtype(choice: str, checkpoint_dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype of this name; `auto` is a dtype in which the device is fast."""
    if choice != "auto":
        return DTYPES[choice]
    if device.type == "cuda":
        return DTYPES.get(checkpoint_dtype or "", torch.bfloat16)
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def set_threads(count: int) -> None:
    """Set the number of CPU threads for arithmetic."""
    torch.set_num_threads(count)
    native.set_threads(count)


def leave_cores_to_kernels() -> None:
    """Let torch compute in the calling thread only: its waiting threads would keep cores from the native kernels."""
    torch.set_num_threads(1)


def default_kv_cache_bytes(device: torch.device) -> int:
    """The size of the KV cache without a flag: a part of the memory that is free after the weights are loaded."""
    return int(available_bytes(device) * (0.85 if device.type == "cuda" else 0.25))


def used_bytes(device: torch.device) -> int:
    """Bytes of memory that this process has now, without the pages of mapped files."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else host_memory.resident_bytes()


def available_bytes(device: torch.device, *, with_swap: bool = False) -> int:
    """Bytes of memory that are free now; of a CPU, with what the system can swap out if that is asked for."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory.available_bytes(with_swap=with_swap)

"""An operation to measure, how its time is taken, and what the machine could do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.ops import Ops


@dataclass(frozen=True)
class Case:
    """An operation at one size.

    Attributes:
        make: returns a call without arguments that runs the operation of a backend.
        num_bytes: bytes that the call must read or write.
        flops: flops of the call, 2 for a multiply-add.
    """

    name: str
    make: Callable[[Ops], Callable[[], object]]
    num_bytes: float
    flops: float


def round_robin(layers: list[Any], call: Callable[..., object]) -> Callable[[], object]:
    """`call` with the tensors of the next layer each time, so that they are not in the processor's cache."""
    index = 0

    def next_layer() -> object:
        nonlocal index
        index = (index + 1) % len(layers)
        return call(*layers[index])

    return next_layer


def read_bandwidth() -> float:
    """Bytes per second of a sum over 512 MB."""
    values = torch.ones(64 << 20, dtype=torch.int64)
    return values.nbytes / fastest(values.sum)


def peak_flops(dtype: torch.dtype) -> float:
    """Flops per second of a product of large matrices."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return 2.0 * 2048**3 / fastest(lambda: a @ b)


def fastest(call: Callable[[], object], least: int = 5) -> float:
    """Seconds of the fastest call, but for the first; calls are repeated for 0.3 s, and `least` times or more."""
    call()
    best, num_calls, end = float("inf"), 0, time.perf_counter() + 0.3
    while num_calls < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        num_calls += 1
    return best

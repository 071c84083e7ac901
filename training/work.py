"""How much arithmetic a training step is, and how much the device could do: MFU is the one by the other.

Counted as in engine.models.work: matrix products with the experts that a token uses, and attention by its pattern;
three times the forward pass, of which two are the backward pass. What activation checkpointing repeats is not counted.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from engine.models.work import step_work

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.models.config import ModelConfig

_SIZE, _SECONDS = 1024, 0.2  # of the matrix product that measures the peak, and for how long


class TrainingWork:
    """The arithmetic of rows of tokens under one model."""

    def __init__(self, config: ModelConfig) -> None:
        self._of_row = lru_cache(maxsize=8192)(lambda length: _row_flops(config, length))

    def flops(self, lengths: Iterable[int]) -> float:
        """Flops of training on rows of so many tokens."""
        return sum(map(self._of_row, lengths))


def _row_flops(config: ModelConfig, length: int) -> float:
    forward = step_work(config, [length], [length], length, weight_size=0.0, entry_size=0.0).flops
    return 3 * forward


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Flops a second of a large matrix product on this device."""
    a, b = (torch.ones(_SIZE, _SIZE, device=device, dtype=dtype) for _ in range(2))  # a run's random numbers stay
    count, started, best = 0, time.perf_counter(), float("inf")
    while count < 2 or time.perf_counter() - started < _SECONDS:  # the first one warms up
        before = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, count = min(best, time.perf_counter() - before), count + 1
    return 2 * _SIZE**3 / best

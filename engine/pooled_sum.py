"""The values of a sequence that generates nothing, added up from its chunks. Bytes in, bytes out."""

from __future__ import annotations

import numpy as np


class PooledSum:
    """A sum in fp64, so that it is the same however a prompt is cut, but for its last digits."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None

    def add(self, chunk_sum: bytes) -> None:
        """Add values in fp64, as StepResult.pooled has them."""
        values = np.frombuffer(chunk_sum, "<f8")
        self._sum = values if self._sum is None else self._sum + values

    def mean(self, count: int) -> bytes:
        """The sum over a count, in fp32, as SequenceOutput.pooled has it."""
        assert self._sum is not None, "nothing was added"
        return (self._sum / count).astype("<f4").tobytes()

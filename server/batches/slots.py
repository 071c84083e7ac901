"""How many lines are in flight: enough to fill the engine's batch, of a bounded number of bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_BYTES = 64 << 20  # of lines in flight; one line goes whatever its size


class Slots:
    """Places for lines, which batches take in turn."""

    def __init__(self, max_lines: Callable[[], int]) -> None:
        """`max_lines` is asked whenever a place may be taken."""
        self._max_lines = max_lines
        self.num_taken = self._num_bytes = 0
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()  # a Lock lets waiters in by order of arrival

    async def take(self, size: int) -> Callable[[object], None]:
        """Wait for a place for a line of so many bytes; what gives it back."""
        async with self._turn:
            while self.num_taken and (self.num_taken >= self._max_lines() or self._num_bytes + size > _MAX_BYTES):
                self._freed.clear()
                await self._freed.wait()
            self.num_taken += 1
            self._num_bytes += size
        return lambda _: self._give_back(size)

    def _give_back(self, size: int) -> None:
        self.num_taken -= 1
        self._num_bytes -= size
        self._freed.set()

"""A bound on what work under way may take, where the rest waits in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Budget:
    """So much at a time, of whatever it counts. What is larger than all of it takes all of it."""

    def __init__(self, size: int) -> None:
        self._size, self._num_free = size, size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Wait for so much, and give it back behind the `with` statement."""
        amount = min(amount, self._size)
        if self._waiting or amount > self._num_free:
            await self._wait(amount)
        else:
            self._num_free -= amount
        try:
            yield
        finally:
            self._give_back(amount)

    async def _wait(self, amount: int) -> None:
        place = (amount, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        try:
            await place[1]
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
                self._give_back(0)  # those behind it may fit
            elif not place[1].cancelled():  # it was its turn just now
                self._give_back(amount)
            raise

    def _give_back(self, amount: int) -> None:
        self._num_free += amount
        while self._waiting and self._waiting[0][0] <= self._num_free:
            amount, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._num_free -= amount
                turn.set_result(None)

"""Gives memory back to the system after large requests: the C library keeps what was freed for later use."""

from __future__ import annotations

import asyncio

from engine.memory import Trimmer

LARGE = 1 << 20  # bytes of bodies and texts after which it is worth it
_DELAY = 1.0  # seconds, so that a flood of large bodies costs one trim a second


class Trimming:
    """Trims in a thread, some time after as many bytes were worked on as make it worth it."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._is_due = False

    def count(self, num_bytes: int) -> None:
        """Count bytes that were worked on; called in the event loop."""
        self._num_bytes += num_bytes
        if self._num_bytes >= LARGE and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_DELAY, self._start)

    def _start(self) -> None:
        self._is_due, self._num_bytes = False, 0
        asyncio.get_running_loop().run_in_executor(None, Trimmer().trim)

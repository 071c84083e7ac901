"""Gives memory back to the system after large requests: the C library keeps what was freed for later use."""

from __future__ import annotations

import asyncio

from engine.memory import Trimmer

LARGE = 1 << 20  # bytes of a body after which it is worth it
_DELAY = 1.0  # seconds, so that a flood of large bodies costs one trim a second


class Trimming:
    """Trims in a thread, some time after it was asked to."""

    def __init__(self) -> None:
        self._is_due = False

    def soon(self) -> None:
        """Ask for it; called in the event loop."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_DELAY, self._start)

    def _start(self) -> None:
        self._is_due = False
        asyncio.get_running_loop().run_in_executor(None, Trimmer().trim)

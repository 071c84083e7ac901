"""The phases of a start, as the engine tells them to whoever waits for it (probes, the log)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.protocol import Loading

if TYPE_CHECKING:
    from collections.abc import Callable

FINDING = "finding the model"
DOWNLOADING = "downloading the model"
PAUSING = "pausing before the engine is started again"
STARTING = "starting the engine"
WEIGHTS = "reading and packing weights"
ALLOCATING = "allocating the KV cache"
WARMING_UP = "warming up"

_SPACING = 0.25  # seconds between two reports of one phase


class Phases:
    """Reports where a load stands: each phase once, and its share while it grows. A report is a sign of life too."""

    def __init__(self, report: Callable[[Loading], None] = lambda _: None) -> None:
        self._report, self._phase, self._reported = report, "", 0.0

    def begin(self, phase: str) -> None:
        """Say that a phase begins."""
        self._phase, self._reported = phase, time.monotonic()
        self._report(Loading(phase))

    def share(self, share: float) -> None:
        """Say how much of the phase is done, from 0 to 1; called as often as one likes."""
        now = time.monotonic()
        if now - self._reported >= _SPACING:
            self._reported = now
            self._report(Loading(self._phase, share))

"""How far the server's start is: the phase, its share and seconds, for /startupz and the log."""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger(__name__)

READY = "ready"


class Startup:
    """The start under way, or the one that was last. Times are time.monotonic's seconds.

    Attributes:
        phase: of engine.loading.phases, or READY.
        share: of the phase that is done, from 0 to 1; None where it is not known.
    """

    def __init__(self, started: float | None = None, what: str = "start") -> None:
        """`started` is when the first start began, if not now; `what` is the log's word for it."""
        self._what = what
        self._started = self._phase_started = time.monotonic() if started is None else started
        self._seconds: float | None = None  # that the start took, once it is over
        self.phase = ""
        self.share: float | None = None

    def restart(self) -> None:
        """The engine is started again."""
        self._started, self._seconds = time.monotonic(), None

    def tell(self, phase: str, share: float | None = None) -> None:
        """Take in where the start is; the first word of a phase is logged."""
        if phase != self.phase:
            logger.info("%s: %s", self._what, phase)
            self._phase_started = time.monotonic()
        self.phase, self.share = phase, share

    def finish(self) -> None:
        """The engine takes requests."""
        now = time.monotonic()
        self._seconds = now - self._started
        self.phase, self.share, self._phase_started = READY, 1.0, now

    @property
    def seconds(self) -> float:
        """How long the start has taken so far, or took."""
        return time.monotonic() - self._started if self._seconds is None else self._seconds

    def report(self) -> dict[str, Any]:
        """Return what /startupz says beside the status."""
        return {
            "phase": self.phase,
            "share": None if self.share is None else round(self.share, 3),
            "phase_seconds": round(time.monotonic() - self._phase_started, 3),
            "seconds": round(self.seconds, 3),
        }

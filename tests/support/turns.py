"""How long the event loop computes in one turn: the processor's time, which does not depend on what else runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


class Turns:
    """What `watched` saw.

    Attributes:
        longest: seconds; what is what ran then.
    """

    longest, what = 0.0, ""


@contextlib.contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    """Measure each callback of asyncio, which is what runs between two chances for others."""
    turns, run = Turns(), asyncio.Handle._run
    gc.collect()
    gc.freeze()  # what other tests have made is not the server's to look through

    def timed(handle: Any) -> None:
        started = time.thread_time()
        run(handle)
        if (seconds := time.thread_time() - started) > turns.longest:
            turns.longest, turns.what = seconds, repr(handle)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield turns
    gc.unfreeze()

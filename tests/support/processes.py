"""Whether processes have ended, whosever children they are."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def wait_gone(pids: Iterable[int], timeout: float) -> bool:
    """Whether all of these end within so many seconds (collected or not by whoever adopted them)."""
    deadline = time.monotonic() + timeout
    return all(_ends(pid, max(0.0, deadline - time.monotonic())) for pid in pids)


def _ends(pid: int, timeout: float) -> bool:
    try:
        ended = os.pidfd_open(pid)  # readable from the process's end on
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([ended], [], [], timeout)[0])
    finally:
        os.close(ended)

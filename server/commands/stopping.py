"""Lets a command that writes files remove what is half done, however it is stopped."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, raise SystemExit meanwhile, as ctrl-C raises an error."""

    def stop(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}  # nohup has SIGHUP ignored
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

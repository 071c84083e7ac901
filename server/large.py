"""Where the work on large requests is done, and how many bytes of them are held.

Python runs one thread at a time, and one that computes lets go every few milliseconds only, to whichever comes first:
the event loop waits for all of them. So there is one thread for what takes more than a millisecond.
server.http.json_body says which requests are large.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, TypeVar

from engine.errors import OverloadedError
from engine.names import name_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

SMALL_BYTES = 32 << 10  # of a request for which no thread is worth it, if it has few keys

_thread = ThreadPoolExecutor(1, "large", name_thread, ("large",))
_is_large: ContextVar[bool] = ContextVar("is_large", default=False)


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Call a function in the thread, after what waits there; what it computes must let other threads run."""
    return await asyncio.get_running_loop().run_in_executor(_thread, copy_context().run, function, *args)


async def apart(function: Callable[..., T], *args: object) -> T:
    """Call a function whose work grows with the request: at once, or in the thread if the request is large."""
    return await run_if(_is_large.get(), function, *args)


async def run_if(is_large: bool, function: Callable[..., T], *args: object) -> T:
    """Call a function: in the thread if what it does is large, else at once."""
    return await in_thread(function, *args) if is_large else function(*args)


def grows(num_bytes: int) -> None:
    """Count so many bytes, which are no part of its body, to the request under way: it may become a large one."""
    if num_bytes > SMALL_BYTES:
        _is_large.set(True)


class LargeRequests:
    """Counts the bytes of large requests under way."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0

    @contextlib.contextmanager
    def one(self, num_bytes: int, *, is_bounded_elsewhere: bool = False) -> Iterator[None]:
        """What runs in the `with` statement is a large request. Where none is under way, any is taken.

        Raises:
            OverloadedError: there are as many bytes as may be, and it is not of those that wait elsewhere.
        """
        if not is_bounded_elsewhere and self._num_bytes and self._num_bytes + num_bytes > self._max_bytes:
            raise OverloadedError("The server has as many large requests as it holds at a time; try again.", 1.0)
        self._num_bytes += num_bytes
        token = _is_large.set(True)
        try:
            yield
        finally:
            _is_large.reset(token)
            self._num_bytes -= num_bytes

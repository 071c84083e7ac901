"""How much may wait: requests and prompt tokens that have not started are counted before any work is done on them.

A full queue refuses at once, and says when to come back by the rate at which it has been emptying.
"""

from __future__ import annotations

import collections
import math
import time
from typing import TYPE_CHECKING

from engine.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_REMEMBERED = 64  # starts that the drain rate is taken from
_LONGEST = 60.0  # seconds that anyone is told to wait


class Admission:
    """Counts what waits."""

    def __init__(self, max_requests: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.num_requests = self.num_tokens = 0
        self.num_requests_of: collections.Counter[bytes] = collections.Counter()  # tenant -> its prompts that wait
        self._clock = clock
        self._starts: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    def admit(self, num_requests: int, num_tokens: int, tenant: bytes = b"") -> Ticket:
        """Let a request of so many prompts in; an empty queue takes any.

        A tenant of whom nothing waits finds another quarter of the bounds: who fills the queue shuts nobody out.

        Raises:
            OverloadedError: it would exceed a bound.
        """
        waiting = f"{self.num_requests} prompts with about {self.num_tokens} tokens wait already"
        if self.num_requests:
            is_new = not self.num_requests_of[tenant]
            if self.num_requests + num_requests > _bound(self.max_requests, with_reserve=is_new):
                raise OverloadedError(
                    f"The server is busy: {waiting}, and {self.max_requests} may.", self.retry_after()
                )
            if self.num_tokens + num_tokens > _bound(self.max_tokens, with_reserve=is_new):
                raise OverloadedError(
                    f"The server is busy: {waiting}, and {self.max_tokens} tokens may.", self.retry_after()
                )
        return Ticket(self, num_requests, num_tokens, tenant)

    def retry_after(self) -> float:
        """Seconds until what waits now will have started, as fast as it has been going."""
        if len(self._starts) < 2:
            return 1.0
        seconds_each = (self._clock() - self._starts[0]) / len(self._starts)
        return min(max(1.0, self.num_requests * seconds_each), _LONGEST)

    def forget_starts(self) -> None:
        """The queue is empty: how fast it went says nothing from here on, as idle time is not waiting."""
        self._starts.clear()

    def note_start(self) -> None:
        """A prompt has started."""
        self._starts.append(self._clock())


class Ticket:
    """One request's share of the queue; given back prompt by prompt as they start, and the rest when it is closed."""

    def __init__(self, admission: Admission, num_requests: int, num_tokens: int, tenant: bytes) -> None:
        self._admission, self._tenant = admission, tenant
        self._num_requests = self._num_tokens = 0
        self._kept = False
        self._change(num_requests, num_tokens)

    def __enter__(self) -> Ticket:
        self._kept = False
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None or not self._kept:
            self.close()

    def keep(self) -> Ticket:
        """Stay open beyond the `with` statement; whoever is handed the ticket closes it."""
        self._kept = True
        return self

    def resize(self, num_tokens: int) -> None:
        """Put the number of tokens right, once they are counted."""
        self._change(0, num_tokens - self._num_tokens)

    def retry_after(self) -> float:
        """See Admission."""
        return self._admission.retry_after()

    def start(self) -> None:
        """One of its prompts waits no longer."""
        if self._num_requests:
            self._admission.note_start()
            self._change(-1, -math.ceil(self._num_tokens / self._num_requests))

    def close(self) -> None:
        """Give back what is left; any number of times."""
        self._change(-self._num_requests, -self._num_tokens)

    def _change(self, num_requests: int, num_tokens: int) -> None:
        self._num_requests += num_requests
        self._num_tokens += num_tokens
        self._admission.num_requests += num_requests
        self._admission.num_tokens += num_tokens
        of = self._admission.num_requests_of
        of[self._tenant] += num_requests
        if not of[self._tenant]:
            del of[self._tenant]
        if not self._admission.num_requests:
            self._admission.forget_starts()


def _bound(most: int, *, with_reserve: bool) -> int:
    return most + max(1, most // 4) if with_reserve else most


def estimate_tokens(prompt: str | list[int]) -> int:
    """Tokens of a prompt that is not tokenised yet, roughly: some four letters of English, one or two of Chinese."""
    return len(prompt) if isinstance(prompt, list) else len(prompt) // 3 + 1

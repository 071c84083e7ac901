"""How much may wait: prompts that have not started, and their tokens, are counted before any work is done on them.

A full queue refuses a request at once. The refusal says when to come back, from the rate of the latest starts.
"""

from __future__ import annotations

import collections
import math
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from engine.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable

_REMEMBERED = 64  # starts that the rate is taken from
_LONGEST = 60.0  # seconds; no client is told to wait longer


class Admission:
    """Counts prompts that wait, and their tokens."""

    def __init__(self, max_prompts: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_prompts, self.max_tokens = max_prompts, max_tokens
        self.num_prompts = self.num_tokens = 0
        self.num_prompts_of: collections.Counter[bytes] = collections.Counter()  # tenant -> its prompts that wait
        self._clock = clock
        self._starts: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    def admit(self, num_prompts: int, num_tokens: int, tenant: bytes = b"") -> Ticket:
        """Let a request of so many prompts in. An empty queue takes any request.

        A quarter of each bound is added for a tenant of whom nothing waits, so that no tenant can shut out the others.

        Raises:
            OverloadedError: the request would exceed a bound.
        """
        self.check(num_prompts, num_tokens, tenant)
        return Ticket(self, num_prompts, num_tokens, tenant)

    def check(self, num_prompts: int, num_tokens: int, tenant: bytes = b"") -> None:
        """Raise as `admit` would now."""
        if self.num_prompts:
            waiting = f"{self.num_prompts} prompts with about {self.num_tokens} tokens wait already"
            is_new = not self.num_prompts_of[tenant]
            for total, bound, unit in (
                (self.num_prompts + num_prompts, self.max_prompts, ""),
                (self.num_tokens + num_tokens, self.max_tokens, " tokens"),
            ):
                if total > bound + is_new * max(1, bound // 4):
                    raise OverloadedError(f"The server is busy: {waiting}, and {bound}{unit} may.", self.retry_after())

    def retry_after(self) -> float:
        """Return in how many seconds all that waits now should have started."""
        if len(self._starts) < 2:
            return 1.0
        seconds_each = (self._clock() - self._starts[0]) / len(self._starts)
        return min(max(1.0, self.num_prompts * seconds_each), _LONGEST)

    def forget_starts(self) -> None:
        """Forget the rate of starts; called when the queue is empty, since idle time says nothing of the rate."""
        self._starts.clear()

    def note_start(self) -> None:
        """Count a prompt's start for the rate."""
        self._starts.append(self._clock())


class Ticket(AbstractContextManager["Ticket"]):
    """One request's share of the queue. Each prompt gives its part back when it starts; `close` gives back the rest."""

    def __init__(self, admission: Admission, num_prompts: int, num_tokens: int, tenant: bytes) -> None:
        self._admission, self._tenant = admission, tenant
        self._num_prompts = self._num_tokens = 0
        self._change(num_prompts, num_tokens)

    def __exit__(self, *_: object) -> None:
        self.close()

    def resize(self, num_tokens: int) -> None:
        """Replace the estimated number of tokens by the exact one."""
        self._change(0, num_tokens - self._num_tokens)

    def retry_after(self) -> float:
        """Return `Admission.retry_after`."""
        return self._admission.retry_after()

    def start(self) -> None:
        """Give back the share of one prompt, which has started."""
        if self._num_prompts:
            self._admission.note_start()
            self._change(-1, -math.ceil(self._num_tokens / self._num_prompts))

    def pass_on(self) -> None:
        """Leave the share of one prompt, which has started, to another prompt of the request."""
        self._admission.note_start()

    def close(self) -> None:
        """Give back what is left; a second call does nothing."""
        self._change(-self._num_prompts, -self._num_tokens)

    def _change(self, num_prompts: int, num_tokens: int) -> None:
        self._num_prompts += num_prompts
        self._num_tokens += num_tokens
        self._admission.num_prompts += num_prompts
        self._admission.num_tokens += num_tokens
        of = self._admission.num_prompts_of
        of[self._tenant] += num_prompts
        if not of[self._tenant]:
            del of[self._tenant]
        if not self._admission.num_prompts:
            self._admission.forget_starts()


def estimate_tokens(prompt: str | list[int]) -> int:
    """Return roughly how many tokens a prompt has: a token is some four letters of English, one or two of Chinese."""
    return len(prompt) if isinstance(prompt, list) else len(prompt) // 3 + 1

"""An answer's deltas, held back until the guard has passed them: whatever a client reads, the guard has passed whole.

A choice is checked when `window` of its tokens wait, and at its end; each check reads what came before, too. Checks run
beside the generation, one of a choice at a time, so that a slow guard makes parts larger and not more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from server.text.choice_text import Delta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from engine.protocol import SchedulingParams
    from server.guard.guard import Guard


class _Choice:
    """One choice: the deltas that nobody has read yet, and the text that is to be read with them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.held: list[Delta] = []
        self.is_over = self.is_checked = False
        self._text = self._before = ""  # what a check reads, without what is held; and what stands before that
        self._has_passed = False

    def is_due(self, window: int) -> bool:
        """Whether what is held is to be checked now."""
        if self.is_over or not self.held:
            return False
        return self.held[-1].finish_reason is not None or sum(len(delta.token_ids) for delta in self.held) >= window

    def unread(self) -> tuple[str, str]:
        """Return the text for a check, and what precedes it; no text if nothing of it is new."""
        new = "".join(delta.text for delta in self.held)
        return (self._text + new if new else ""), self._before

    def release(self, count: int, context: int) -> Delta:
        """Return the first so many deltas as one; later checks read at least `context` characters of what has passed.

        To begin anew only at twice as many keeps what checks read the same for a while, and so in the prefix cache.
        """
        whole, *others = self.held[:count]
        for later in others:
            whole.extend(later)
        del self.held[:count]
        self._text += whole.text
        if len(self._text) > 2 * context:
            self._before += self._text[:-context]
            self._text = self._text[-context:]
        self._has_passed = True
        self.is_over = whole.finish_reason is not None
        return whole

    def cut(self) -> Delta:
        """Return the end of a choice that was flagged: nothing of what is held."""
        self.is_over = True
        first = Delta(self.number) if self._has_passed else self.held[0]
        self.held = []
        reports = first.prompt_logprobs  # of the prompt, which has passed
        return Delta(self.number, "", [], [], reports, "content_filter", is_first=first.is_first)


class CheckedDeltas:
    """The deltas of one request's choices."""

    def __init__(
        self, guard: Guard, num_choices: int, scheduling: SchedulingParams, end: Callable[[int], None]
    ) -> None:
        """`end` is called with the number of a choice that is flagged: no more of it is wanted."""
        self._guard, self._scheduling, self._end = guard, scheduling, end
        self._choices = [_Choice(number) for number in range(num_choices)]
        self._passed: deque[Delta] = deque()
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def of(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """Yield what has passed, in larger deltas; a choice that is flagged ends with "content_filter".

        Raises:
            EngineUnavailableError, DeadlineError: the guard could not say; and what `deltas` raises.
        """
        self._start(self._take(deltas))
        try:
            while self._tasks or self._passed:
                await self._news.wait()
                self._news.clear()
                while self._passed:
                    yield self._passed.popleft()
                for task in [task for task in self._tasks if task.done()]:
                    self._tasks.remove(task)
                    task.result()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._news.set())

    async def _take(self, deltas: AsyncGenerator[Delta, None]) -> None:
        """Hold what comes, and have it checked."""
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                choice = self._choices[delta.choice]
                if choice.is_over:
                    continue
                choice.held.append(delta)
                if not choice.is_checked and choice.is_due(self._guard.window):
                    choice.is_checked = True
                    self._start(self._check(choice))

    async def _check(self, choice: _Choice) -> None:
        while choice.is_due(self._guard.window):
            count = len(choice.held)
            text, preceding = choice.unread()
            if text and await self._guard.flags_output(text, preceding, self._scheduling):
                self._end(choice.number)
                self._passed.append(choice.cut())
            else:
                self._passed.append(choice.release(count, self._guard.context))
            self._news.set()
        choice.is_checked = False

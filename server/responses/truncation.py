"""truncation: auto. The oldest turns are left out until the conversation fits the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from server.protocol import Message


async def newest_turns(messages: list[Message], fits: Callable[[list[Message]], Awaitable[bool]]) -> list[Message]:
    """Return the longest end of a conversation that fits; if none does, its last turn.

    System messages at the beginning stay. A turn begins with a user's message, so no tool's result is left without its
    call.
    """
    head = 0
    while head < len(messages) and messages[head].role in ("system", "developer"):
        head += 1
    starts = [i for i, message in enumerate(messages) if i > head and message.role == "user"]

    def end(number: int) -> list[Message]:
        return messages[:head] + messages[starts[number - 1] :] if number else messages

    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if await fits(end(middle)):
            high = middle
        else:
            low = middle + 1
    return end(low)

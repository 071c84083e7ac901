"""Long texts on their way to token ids: in threads, so many bytes at a time, and no more of them than is of use.

A tokenizer takes up to 300 bytes of memory for each byte of a text. A text that is too long is refused after about as
many tokens as may be, and of one that is cut, only the end that is kept is tokenised.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from server.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.memory import Trimming
    from server.text.tokenizer import Tokenizer

T = TypeVar("T")

_AT_A_TIME = 256 << 10  # bytes, over all requests; a longer text goes alone
_LONGEST, _BYTES_PER_TOKEN = 1 << 20, 16  # bytes of a text that is tokenised; more where the context is longer
_USUAL = 8  # characters of a token: texts with fewer for each token of the limit are not counted before
_PIECE = 16 << 10  # characters that are tokenised between two looks at the count
_SLACK = 64  # tokens that a cut through a text may change, on either side of it; tokenizers look at a word or two
_MARGIN = 1.05  # the same, for those of which nothing is known


class LongTexts:
    """The long texts of all requests to one server."""

    def __init__(self, tokenizer: Tokenizer, trimming: Trimming) -> None:
        self._tokenizer, self._trimming, self._places = tokenizer, trimming, Budget(_AT_A_TIME)

    async def run(self, num_bytes: int, function: Callable[..., T], *args: object) -> T:
        """Call a function in a thread, which tokenises so many bytes."""
        async with self._places.take(num_bytes):
            self._trimming.count(num_bytes)
            return await asyncio.to_thread(function, *args)

    async def exceeds(self, text: str, max_tokens: int, *, usual: int = _USUAL) -> bool:
        """Whether a text surely has more tokens, or is too long to know; as much of it is tokenised as that takes.

        Args:
            text: it.
            max_tokens: the limit.
            usual: characters for each token of the limit up to which a text may have as many.
        """
        if len(text) <= usual * max_tokens:
            return False
        if num_bytes(text) > max(_LONGEST, _BYTES_PER_TOKEN * max_tokens):
            return True
        count = 0
        for start in range(0, len(text), _PIECE):
            count += max(0, await self._num_tokens(text[start : start + _PIECE]) - 2 * _SLACK)
            if count > _MARGIN * max_tokens:
                return True
        return False

    async def end_of(self, text: str, num_tokens: int, *, is_beginning: bool = False) -> str:
        """Return the end (or the beginning) of a text with at least so many tokens and some more, or all of the text.

        Its last (or first) tokens are those of the whole text.
        """
        size = _USUAL * (num_tokens + _SLACK)
        while size < len(text):
            part = text[:size] if is_beginning else text[-size:]
            if await self._num_tokens(part) >= num_tokens + _SLACK:
                return part
            size *= 4
        return text

    async def _num_tokens(self, text: str) -> int:
        return await self.run(num_bytes(text), _count, self._tokenizer, text)


def num_bytes(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))

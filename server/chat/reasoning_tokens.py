"""Counts the tokens of one choice's reasoning, for `usage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.chat.reasoning import ReasoningSplitter
    from server.text.detokenizer import Detokenizer


class ReasoningTokens:
    """Follows a choice token by token until its reasoning ends; the markers count as reasoning."""

    def __init__(self, splitter: ReasoningSplitter, detokenizer: Detokenizer) -> None:
        """Both are new, and this counter's own."""
        self._splitter, self._detokenizer, self._seen = splitter, detokenizer, 0

    def push(self, token_ids: Iterable[int]) -> None:
        """Take more tokens of the choice."""
        for token_id in token_ids:
            if self._splitter.has_ended:
                return
            self._splitter.push(self._detokenizer.push(token_id), final=False)
            self._seen += 1

    @property
    def count(self) -> int:
        """Tokens of the reasoning so far."""
        return self._seen if self._splitter.has_begun else 0

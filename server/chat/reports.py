"""Reports of tokens with their logprobs, in the form that all chat APIs give them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.chat.pieces import Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.chat.pieces import Piece
    from server.text.choice_text import Delta, TokenReport
    from server.text.tokenizer import Tokenizer

Json = dict[str, Any]


def token_report(tokenizer: Tokenizer, report: TokenReport) -> Json:
    """Return a token with its logprob, and the likeliest tokens in its place."""
    logprobs = report.logprobs
    top = [_token(tokenizer, i, p) for i, p in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)]
    return {**_token(tokenizer, report.token_id, logprobs.logprob), "top_logprobs": top}


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> Json:
    as_bytes = tokenizer.token_bytes(token_id)
    return {"token": as_bytes.decode(errors="replace"), "logprob": logprob, "bytes": list(as_bytes)}


class AnswerReports:
    """Picks the reports of the tokens of the answer's text out of all: reasoning and tool calls have tokens too."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = ""  # all of the choice's, with what the pieces leave out
        self._pending: list[TokenReport] = []
        self._in_answer = False

    def of(self, delta: Delta, pieces: Sequence[Piece]) -> list[Json]:
        """Return the reports that belong to a delta's content. Each delta is given once, in order."""
        self._text += delta.text
        self._pending += delta.reports
        content = [piece.text for piece in pieces if isinstance(piece, Content)]
        if not content:
            if pieces:
                self._pending, self._in_answer = [], False
            return []
        start = 0 if self._in_answer else max(self._text.rfind(content[0]), 0)
        end = len(self._text)  # a token that ends the text is no part of it
        found = [report for report in self._pending if start <= report.text_offset < end]
        self._pending, self._in_answer = [], isinstance(pieces[-1], Content)
        return [token_report(self._tokenizer, report) for report in found]

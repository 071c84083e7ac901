"""vLLM's `prompt_logprobs`: each prompt token's logprob and rank, but for the first, and the likeliest in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from engine.protocol import TokenLogprobs
    from server.text.tokenizer import Tokenizer


def write_prompt_logprobs(
    tokenizer: Tokenizer, prompt_ids: list[int], reports: list[TokenLogprobs], count: int
) -> list[msgspec.Raw | None]:
    """Return the JSON of one entry a prompt token, the first of them None; all at once would hold up other threads.

    Each maps token ids, as text, to {logprob, rank, decoded_token}: the prompt's token first, then `count` likeliest.
    """

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        text = tokenizer.token_bytes(token_id).decode(errors="replace")
        return {"logprob": logprob, "rank": rank, "decoded_token": text}

    written: list[msgspec.Raw | None] = [None]
    for token_id, report in zip(prompt_ids[1:], reports, strict=True):
        entries = {str(token_id): entry(token_id, report.logprob, report.rank)}
        top = zip(report.top_ids[:count], report.top_logprobs, strict=False)
        for rank, (top_id, logprob) in enumerate(top, 1):
            entries.setdefault(str(top_id), entry(top_id, logprob, rank))
        written.append(msgspec.Raw(msgspec.json.encode(entries)))
    return written

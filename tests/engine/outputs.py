"""What a sequence's outputs must be: each token that was sampled, once, and the end that is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.protocol import TokenLogprobs

if TYPE_CHECKING:
    from engine.protocol import FinishReason, SequenceOutput
    from engine.step import ScheduledSequence
    from tests.engine.shadow import Record


def prompt_logprobs(item: ScheduledSequence) -> list[TokenLogprobs]:
    """Those that the model runner reports of a step; each says its position."""
    if item.seq.sampling.prompt_logprobs is None:
        return []
    start = max(item.start, len(item.seq.prompt_logprobs))
    stop = min(item.start + item.num_tokens, item.seq.num_prompt_tokens - 1)
    return [TokenLogprobs(-float(position), [], []) for position in range(start, stop)]


def check_output(record: Record, token: int | None, output: SequenceOutput) -> FinishReason | None:
    """Write what was sampled into the record, assert that the output says just that; why the sequence must end."""
    seq, sampling = record.seq, record.seq.sampling
    assert (output.request_id, output.index) == (seq.request_id, seq.index)
    tokens = [] if token is None or sampling.max_tokens == 0 else [token]
    record.output += tokens
    reason: FinishReason | None
    if sampling.max_tokens == 0:
        reason = "length"
    elif token is None:
        reason = "error"
    elif token in seq.stop_token_ids and len(record.output) >= sampling.min_tokens:
        reason = "stop"
    else:
        reason = "length" if len(record.output) == sampling.max_tokens else None
    assert (output.token_ids, output.finish_reason) == (tokens, reason)
    assert output.stop_token_id == (token if reason == "stop" else None)
    is_first = record.num_outputs == 0
    assert output.queue_time == (record.first_start - seq.terms.arrival_time if is_first else None)
    assert output.num_cached_tokens == (record.num_cached_first if is_first else 0)
    expected = [-float(position) for position in range(len(record.prompt) - 1)]
    if is_first and sampling.prompt_logprobs is not None:
        assert [report.logprob for report in output.prompt_logprobs] == expected
    else:
        assert output.prompt_logprobs is None
    record.num_outputs += 1
    return reason

"""A sequence: one prompt and the output that grows on it, or the values that are pooled of it.

DynamicBatcher owns every field; all others only read.

    add -> WAITING -- start --> RUNNING -- stop, length, error --> FINISHED
      |       ^  |                |  |                                ^
      |       |  |   preempt      |  |  abort, timeout                |
      |       |  |   (blocks go,  |  '--------------------------------+
      |       '--+--- tokens stay)'                                   |
      |          '-- abort, timeout ----------------------------------+
      '--> COMPILING -- ready --> WAITING                             |
           (its grammar) '------- abort, timeout, error --------------'

A sequence's blocks are not here: KVCacheManager has its block table.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.pooled_sum import PooledSum
from engine.protocol import (
    FinishReason,
    PoolingParams,
    SamplingParams,
    SchedulingParams,
    SequenceOutput,
    TokenLogprobs,
)
from engine.step import BlockTable, PromptLogprobs, Sample, SampledToken, ScheduledSequence

if TYPE_CHECKING:
    from engine.grammars import Matcher


class SequenceStatus(enum.Enum):
    """Where a sequence stands; see the module's drawing."""

    COMPILING = "compiling"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its output.

    Attributes:
        index: which of the request's `n` sequences this is.
        token_ids: prompt, then output.
        seed: what the sampler's random numbers derive from.
        stop_token_ids: tokens that end the sequence; empty with ignore_eos and none of its own.
        sequence_id: its number, in order of arrival; the batcher gives it.
        num_computed_tokens: tokens whose keys and values are in the cache.
        num_cached_tokens: tokens that came from the prefix cache when it first started.
        place: where it stands among the waiting, smallest first: (what the policy says, sequence_id).
        num_charged: tokens of it that were to be computed when it arrived, without those in the prefix cache.
        num_passed: sequences that started before it out of turn, because it did not fit.
        first_step_time: when its first step was scheduled; None while it never was.
        mask: the tokens that it may ever have, as Sample.mask; None allows all.
        matcher: where it stands in its grammar, which has masks of its own; None if it has none.
        modalities: the id of each prompt token's modality; empty is 0 for all.
        pooling: the values that it ends with instead of generating; None if it generates.
        pooled_sum: what the chunks so far add up to, of `pooling`.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    scheduling: SchedulingParams
    index: int = 0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    sequence_id: int = -1
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    place: tuple[float, int] = (0, 0)
    num_charged: int = 0
    num_passed: int = 0
    first_step_time: float | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    mask: bytes | None = None
    matcher: Matcher | None = None
    modalities: bytes = b""
    pooling: PoolingParams | None = None
    pooled_sum: PooledSum = field(default_factory=PooledSum)
    reads_tokens: bool = field(init=False)  # of `sampling`, which need not be asked in every step

    def __post_init__(self) -> None:
        self.reads_tokens = self.sampling.reads_tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that the model has yet to see: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def needs_every_position(self) -> bool:
        """Whether no position's hidden state may be missing, so that no cached prefix is of use."""
        is_mean = self.pooling is not None and self.pooling.pooling == "mean"
        return is_mean or self.sampling.prompt_logprobs is not None

    def modalities_of(self, start: int, stop: int) -> bytes:
        """The modality of each of these tokens; empty if all are 0. The output has that of the prompt's last token."""
        if not self.modalities:
            return b""
        ids = self.modalities[start:stop]
        ids += self.modalities[-1:] * (stop - start - len(ids))
        return ids if any(ids) else b""

    def start(self, num_cached_tokens: int, now: float) -> bool:
        """Run it, with so many tokens from the prefix cache; whether it never ran before."""
        self.status, self.num_computed_tokens = SequenceStatus.RUNNING, num_cached_tokens
        if self.first_step_time is not None:
            return False
        self.first_step_time, self.num_cached_tokens = now, num_cached_tokens
        return True

    def send_back(self) -> None:
        """Have it wait again; its tokens will be computed anew."""
        self.status, self.num_computed_tokens, self.pooled_sum = SequenceStatus.WAITING, 0, PooledSum()

    def next_chunk(self, num_tokens: int, block_tables: list[BlockTable]) -> ScheduledSequence:
        """The next num_tokens to compute, as plain values; block_tables hold all up to the last of them."""
        start = self.num_computed_tokens
        stop = start + num_tokens
        token_ids, is_last = self.token_ids[start:stop], stop == len(self.token_ids)
        modalities = self.modalities_of(start, stop) if self.modalities else b""
        if self.pooling is not None:
            pool = self.pooling if is_last or self.pooling.pooling == "mean" else None
            return ScheduledSequence(self.sequence_id, token_ids, start, block_tables, modalities=modalities, pool=pool)
        sample = self._sample() if is_last else None
        prompt_logprobs = None if self.sampling.prompt_logprobs is None else self._prompt_logprobs(start, stop)
        return ScheduledSequence(self.sequence_id, token_ids, start, block_tables, sample, prompt_logprobs, modalities)

    def advance(self, sampled: SampledToken) -> SequenceOutput:
        """Take in what the sampler chose; the output says what that adds, and why the sequence ends if it does."""
        assert self.first_step_time is not None
        is_first = len(self.token_ids) == self.num_prompt_tokens
        token_ids = [] if sampled.token_id is None or self.sampling.max_tokens == 0 else [sampled.token_id]
        self.token_ids += token_ids
        reason = self._end_with(sampled.token_id)
        return SequenceOutput(
            request_id=self.request_id,
            index=self.index,
            token_ids=token_ids,
            finish_reason=reason,
            stop_token_id=token_ids[0] if reason == "stop" and self._stops_with(token_ids[0]) else None,
            logprobs=[sampled.logprobs] if token_ids and sampled.logprobs else None,
            prompt_logprobs=self.prompt_logprobs if is_first and self.sampling.prompt_logprobs is not None else None,
            queue_time=self.first_step_time - self.scheduling.arrival_time if is_first else None,
            num_cached_tokens=self.num_cached_tokens if is_first else 0,
        )

    def pool(self, chunk_sum: bytes | None) -> SequenceOutput | None:
        """Take in what a chunk adds to the values; the output, if they are complete or broken, which is their end."""
        assert self.first_step_time is not None
        assert self.pooling is not None
        reason: FinishReason = "error"
        pooled = None
        if chunk_sum is not None:
            self.pooled_sum.add(chunk_sum)
            if self.num_uncomputed_tokens:
                return None
            count = len(self.token_ids) if self.pooling.pooling == "mean" else 1
            reason, pooled = "stop", self.pooled_sum.mean(count)
        return SequenceOutput(
            request_id=self.request_id,
            index=self.index,
            token_ids=[],
            finish_reason=reason,
            queue_time=self.first_step_time - self.scheduling.arrival_time,
            num_cached_tokens=self.num_cached_tokens,
            pooled=pooled,
        )

    def _end_with(self, token_id: int | None) -> FinishReason | None:
        """Why the sequence ends with the token sampled last, if it does."""
        if token_id is None:
            return "error"
        if self.sampling.max_tokens == 0:
            return "length"
        if token_id in self.stop_token_ids and self._stops_with(token_id):
            return "stop"
        if self.matcher is not None and (reason := self.matcher.accept(token_id)) is not None:
            return reason
        num_output_tokens = len(self.token_ids) - self.num_prompt_tokens
        return "length" if num_output_tokens == self.sampling.max_tokens else None

    def _stops_with(self, token_id: int) -> bool:
        """Whether the last output token ends the sequence for what it is, and so is not part of its text."""
        if token_id not in self.stop_token_ids:
            return False
        # Before min_tokens, a grammar that has ended leaves nothing but the end.
        return self.num_output_tokens >= self.sampling.min_tokens or self.matcher is not None

    def _sample(self) -> Sample:
        params, count = self.sampling, self.num_prompt_tokens
        num_output_tokens = len(self.token_ids) - count
        mask = self.mask if self.matcher is None else self.matcher.mask
        if not self.reads_tokens:
            return Sample(params, self.seed, num_output_tokens, self.stop_token_ids, (), (), mask)
        prompt, output = tuple(self.token_ids[:count]), tuple(self.token_ids[count:])
        return Sample(params, self.seed, num_output_tokens, self.stop_token_ids, prompt, output, mask)

    def _prompt_logprobs(self, start: int, stop: int) -> PromptLogprobs | None:
        """Of the prompt tokens that follow those of a chunk, the ones that were not reported before."""
        count, first = self.sampling.prompt_logprobs, max(start, len(self.prompt_logprobs))
        following = self.token_ids[first + 1 : min(stop + 1, self.num_prompt_tokens)]
        return PromptLogprobs(count, first - start, following) if count is not None and following else None

"""A sequence: one prompt and the output that grows on it. DynamicBatcher owns every field; all others only read.

    add -> WAITING -- start --> RUNNING -- stop, length, error --> FINISHED
              ^  |                |  |                                ^
              |  |   preempt      |  |  abort, timeout                |
              |  |   (blocks go,  |  '--------------------------------+
              '--+--- tokens stay)'                                   |
                 '-- abort, timeout ----------------------------------'

FINISHED is reached through DynamicBatcher._finish only, which releases the blocks, whatever the state before.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from engine.protocol import FinishReason, SamplingParams, Terms, TokenLogprobs


class SequenceStatus(enum.Enum):
    """Where a sequence stands; see the module's drawing."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its output.

    Attributes:
        index: which of the request's `n` sequences this is.
        token_ids: prompt, then output.
        num_computed_tokens: tokens whose keys and values are in the cache.
        block_table: ids of the KV blocks that hold them, in order of position.
        seed: what the sampler's random numbers derive from.
        stop_token_ids: tokens that end the sequence; empty with ignore_eos and none of its own.
        block_hashes: of its full blocks, as far as KVCacheManager has computed them.
        num_cached_tokens: tokens that came from the prefix cache when it first started.
        place: where it stands among the waiting, smallest first: (what the policy says, arrival number).
        num_charged: tokens of it that were to be computed when it arrived, without those in the prefix cache.
        num_passed: sequences that started before it out of turn, because it did not fit.
        first_step_time: when its first step was scheduled; None while it never was.
    """

    request_id: str
    index: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    terms: Terms
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_cached_tokens: int = 0
    place: tuple[float, int] = (0, 0)
    num_charged: int = 0
    num_passed: int = 0
    first_step_time: float | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None

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

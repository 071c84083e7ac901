"""A step as it goes from the batcher to the model and back: StepPlan, then StepResult."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.protocol import TokenLogprobs
from engine.sequence import Sequence


class ScheduledSequence(msgspec.Struct, frozen=True):  # a Struct, as these are made by the hundred in each step
    """One sequence's share of a step.

    Attributes:
        start: position of the first token to compute.
        num_tokens: how many to compute, from there on.
        samples: whether the step reaches the sequence's last token, so that its logits give the next one.
    """

    seq: Sequence
    start: int
    num_tokens: int
    samples: bool

    @classmethod
    def next_of(cls, seq: Sequence, budget: int) -> ScheduledSequence:
        """What a sequence computes next, within a budget of tokens."""
        num_tokens = min(seq.num_uncomputed_tokens, budget)
        return cls(seq, seq.num_computed_tokens, num_tokens, num_tokens == seq.num_uncomputed_tokens)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes: num_decodes decoding sequences, then prefill chunks; their blocks are allocated."""

    scheduled: tuple[ScheduledSequence, ...]
    num_decodes: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(item.num_tokens for item in self.scheduled)


class SampledToken(msgspec.Struct, frozen=True):
    """The sampler's choice for one sequence; token_id is None when its logits were not finite."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought.

    Attributes:
        sampled: one entry for each scheduled sequence with `samples`, in the plan's order.
        prompt_logprobs: for each scheduled sequence, in the plan's order, those of prompt tokens not collected before.
    """

    sampled: list[SampledToken]
    prompt_logprobs: list[list[TokenLogprobs]]

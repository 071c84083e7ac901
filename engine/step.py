"""A step as it goes from the batcher to the executor and back: StepPlan, then StepResult.

Owns the shapes of both, which are plain values: msgspec.msgpack sends them to other ranks as they are, msgspec.json
logs them. Neither holds a live object, and a plan holds all that a rank needs beside its weights and its KV cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.protocol import PoolingParams, SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Collection

# gc=False: hundreds of these are made in each step, and none can be part of a cycle.


class Sample(msgspec.Struct, frozen=True, gc=False):
    """What the sampler needs of one sequence.

    Attributes:
        seed: what the sequence's random numbers derive from.
        num_output_tokens: tokens generated so far, the index of the next one.
        stop_token_ids: tokens that cannot be chosen before `params.min_tokens`.
        prompt_token_ids: the prompt, if `params` reads tokens; else empty. output_token_ids likewise.
        mask: the tokens that can be chosen, a bit for each, the lowest first, none behind its end; None allows all.
    """

    params: SamplingParams
    seed: int
    num_output_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    prompt_token_ids: tuple[int, ...] = ()
    output_token_ids: tuple[int, ...] = ()
    mask: bytes | None = None


def mask_of(token_ids: Collection[int]) -> bytes | None:
    """The mask that allows these tokens alone; None, which allows all, if there are none."""
    if not token_ids:
        return None
    mask = bytearray((max(token_ids) >> 3) + 1)
    for token_id in token_ids:
        mask[token_id >> 3] |= 1 << (token_id & 7)
    return bytes(mask)


class PromptLogprobs(msgspec.Struct, frozen=True, gc=False):
    """Which prompt tokens' logprobs a chunk reports.

    Attributes:
        count: alternatives to report beside each token.
        first: the first of the chunk's rows that is reported.
        token_ids: the tokens that follow this row and those behind it, one a row.
    """

    count: int
    first: int
    token_ids: list[int]


class BlockTable(msgspec.Struct, frozen=True, gc=False):
    """A sequence's blocks in one group of layers (engine.cache_groups), in order of position.

    Attributes:
        ids: of the blocks number `first`, `first + 1` and so on.
        first: blocks before this one were released, as no query sees them any more.
    """

    ids: list[int]
    first: int = 0


class ScheduledSequence(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step.

    Attributes:
        token_ids: the tokens to compute.
        start: position of the first of them.
        block_tables: the sequence's blocks up to the last of them, by group of layers.
        sample: how to choose the next token; None where the chunk does not reach the sequence's last token.
        prompt_logprobs: what to report of the prompt; None for nothing.
        modalities: the id of each token's modality; empty is 0 for all.
        pool: what the chunk adds to the values of a sequence that generates nothing; None for nothing.
    """

    sequence_id: int
    token_ids: list[int]
    start: int
    block_tables: list[BlockTable]
    sample: Sample | None = None
    prompt_logprobs: PromptLogprobs | None = None
    modalities: bytes = b""
    pool: PoolingParams | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return len(self.token_ids)

    @property
    def context_len(self) -> int:
        """Positions of the sequence that the cache holds after the step."""
        return self.start + len(self.token_ids)


class StepPlan(msgspec.Struct, frozen=True):
    """What one step computes: num_decodes decoding sequences of one token each, then chunks of prompts."""

    scheduled: list[ScheduledSequence]
    num_decodes: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of chunks."""
        return sum(len(item.token_ids) for item in self.scheduled[self.num_decodes :])

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return self.num_decodes + self.num_prompt_tokens


class SampledToken(msgspec.Struct, frozen=True, gc=False):
    """The sampler's choice for one sequence; token_id is None when its logits were not finite."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None


class StepResult(msgspec.Struct, frozen=True):
    """What a step brought.

    Attributes:
        sampled: one entry for each scheduled sequence with `sample`, in the plan's order.
        prompt_logprobs: one list for each scheduled sequence with `prompt_logprobs`, in the plan's order.
        pooled: sequence id -> the sum of values over the rows that the chunk adds, float64, little-endian; for each
            scheduled sequence with `pool`. None where a value is not finite.
    """

    sampled: list[SampledToken]
    prompt_logprobs: list[list[TokenLogprobs]] = []
    pooled: dict[int, bytes | None] = {}

"""What the engine says of itself to whoever looks into it: who runs and waits, why, and what the last step was.

Plain values, bounded in number, without prompts. Nothing is computed for it until it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.kv_cache_manager import KVCacheManager
    from engine.sequence import Sequence

_NUM_EXPLAINED = 8  # waiting sequences whose blocks are looked up


class Inspect(msgspec.Struct, frozen=True, tag="inspect"):
    """Ask for an EngineSnapshot with this number, and at most `limit` sequences of a kind."""

    number: int
    limit: int


class SequenceState(msgspec.Struct, frozen=True):
    """One live sequence.

    Attributes:
        age: seconds since it arrived; seconds_running is since its first step, None before it.
        num_blocks: of the KV cache, that it holds.
        num_passed: sequences that started before it out of turn.
        why: what it waits for; empty if it runs.
    """

    request_id: str
    index: int
    status: str
    age: float
    seconds_running: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    max_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int
    num_blocks: int
    num_passed: int
    why: str


class LastStep(msgspec.Struct, frozen=True):
    """A step that was computed: when it ended, in seconds before now, and what it held."""

    seconds_ago: float
    seconds: float
    num_decodes: int
    num_prompts: int
    num_prompt_tokens: int


class BatcherState(msgspec.Struct, frozen=True):
    """Who is in the batcher; lists are cut, counts are not.

    Attributes:
        costs: seconds of a step as learnt: its base, for each decode, for each prompt token; None before they are.
        num_free_blocks: blocks that no sequence holds, those with cached prefixes included.
    """

    policy: str
    max_batch_size: int
    num_running: int
    num_waiting: int
    num_compiling: int
    num_background_running: int
    num_background_waiting: int
    running: list[SequenceState]
    waiting: list[SequenceState]
    background: list[SequenceState]
    num_blocks: int
    num_free_blocks: int
    block_size: int
    num_steps: int
    num_preemptions: int
    costs: list[float] | None


class EngineSnapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """The answer to Inspect with this number."""

    number: int
    batcher: BatcherState
    last_step: LastStep | None
    num_failed_steps: int


def describe_running(seqs: Iterable[Sequence], kv_cache: KVCacheManager, now: float) -> list[SequenceState]:
    """Describe sequences that hold blocks."""
    return [_describe(seq, now, kv_cache.num_held(seq)) for seq in seqs]


def describe_waiting(
    seqs: Iterable[Sequence], kv_cache: KVCacheManager, now: float, num_spare: int, blocker: str
) -> list[SequenceState]:
    """Describe sequences that wait, the next one first; `blocker` is what holds up all of them, if anything does.

    A sequence starts only if `num_spare` blocks stay free.
    """
    described = []
    for number, seq in enumerate(seqs):
        if seq.status.value == "compiling":
            why = "its grammar is being compiled"
        elif blocker:
            why = blocker
        elif number < _NUM_EXPLAINED:
            why = _why(seq, kv_cache, num_spare)
        else:
            why = f"{number} are before it"
        described.append(_describe(seq, now, 0, why))
    return described


def _describe(seq: Sequence, now: float, num_blocks: int, why: str = "") -> SequenceState:
    started = seq.first_step_time
    return SequenceState(
        request_id=seq.request_id,
        index=seq.index,
        status=seq.status.value,
        age=now - seq.scheduling.arrival_time,
        seconds_running=None if started is None else now - started,
        num_prompt_tokens=seq.num_prompt_tokens,
        num_output_tokens=seq.num_output_tokens,
        max_tokens=seq.sampling.max_tokens,
        num_computed_tokens=seq.num_computed_tokens,
        num_cached_tokens=seq.num_cached_tokens,
        num_blocks=num_blocks,
        num_passed=seq.num_passed,
        why=why,
    )


def _why(seq: Sequence, kv_cache: KVCacheManager, num_spare: int) -> str:
    prefix = kv_cache.find_prefix(seq)
    if kv_cache.is_in_flight(seq, prefix.num_blocks):
        return "another computes the prefix that it shares"
    num_needed, num_free = kv_cache.num_needed(seq, prefix, num_spare), kv_cache.num_available_blocks
    if num_needed > num_free:
        return f"blocks: {num_needed} are needed (with {num_spare} spare), {num_free} are free"
    return "its turn: steps have no room for more prompt tokens yet"

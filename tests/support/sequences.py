"""Sequences as the engine makes them, for tests of the parts that hold or read them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from engine.protocol import PoolingParams, SamplingParams, SchedulingParams
from engine.sequence import Sequence
from engine.step import mask_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.kv_cache_manager import KVCacheManager
    from engine.step import Sample

_numbers = itertools.count()


def make_sequence(
    name: str = "s",
    num_prompt_tokens: int = 1,
    *,
    output: tuple[int, ...] = (),
    prompt: list[int] | None = None,
    seed: int = 0,
    index: int = 0,
    stop_token_ids: tuple[int, ...] = (),
    scheduling: SchedulingParams | None = None,
    modalities: bytes = b"",
    pooling: PoolingParams | None = None,
    **sampling: Any,
) -> Sequence:
    """A waiting sequence; its prompt is zeros unless given."""
    prompt = [0] * num_prompt_tokens if prompt is None else prompt
    return Sequence(
        request_id=name,
        index=index,
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(**sampling),
        seed=seed,
        stop_token_ids=frozenset(stop_token_ids),
        scheduling=scheduling or SchedulingParams(0.0),
        sequence_id=next(_numbers),
        mask=mask_of(sampling.get("allowed_token_ids", ())),
        modalities=modalities,
        pooling=pooling,
    )


def make_sample(name: str = "s", num_prompt_tokens: int = 1, **options: Any) -> Sample:
    """What the sampler gets of such a sequence."""
    seq = make_sequence(name, num_prompt_tokens, **options)
    sample = seq.next_chunk(seq.num_tokens, []).sample
    assert sample is not None
    return sample


def table_of(manager: KVCacheManager, seq: Sequence) -> list[int]:
    """A sequence's whole block table in the first group of layers; empty if it holds nothing."""
    own = manager._sequences.get(seq.sequence_id)
    return [] if own is None or not own.groups else list(own.groups[0].ids)


def try_start(manager: KVCacheManager, seq: Sequence, num_growing: int) -> int | None:
    """Tokens that the cache had; None if `seq` did not start."""
    prefix = manager.find_prefix(seq)
    return prefix.num_blocks * manager.block_size if manager.start(seq, prefix, num_growing) else None


def start(manager: KVCacheManager, prompt: Iterable[int], *, num_growing: int = 0, **sampling: Any) -> Sequence:
    """A sequence that tried to; its num_computed_tokens are what the cache had."""
    seq = make_sequence(prompt=list(prompt), **sampling)
    seq.num_computed_tokens = try_start(manager, seq, num_growing)
    return seq


def compute(manager: KVCacheManager, seq: Sequence) -> None:
    """As the batcher does after a step that computed all of a sequence."""
    before, seq.num_computed_tokens = seq.num_computed_tokens, seq.num_tokens
    manager.computed(seq, before)

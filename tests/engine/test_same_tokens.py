"""Greedy tokens are the same whatever the pool, the prefix cache and the size of chunks, on real (tiny) models."""

import pytest
import torch

from engine.protocol import AbortRequest
from tests.support.running import (
    finish,
    generate,
    greedy_params,
    load,
    make_prompt,
    record_logits,
    relative_error,
    request,
)

BEGINNING = make_prompt(48, seed=1)
PROMPTS = [
    make_prompt(1),
    make_prompt(17, seed=2),
    *(BEGINNING[:length] + make_prompt(rest, seed=3 + rest) for length, rest in ((20, 2), (48, 1), (48, 22), (33, 9))),
]
NUM_TOKENS = 12
BLOCK_SIZE = 4
LEAST_POOL = -(-(max(len(prompt) for prompt in PROMPTS) + NUM_TOKENS) // BLOCK_SIZE)  # the longest fits, alone
CONVERSATION = make_prompt(70, seed=1)
TURNS = [CONVERSATION + make_prompt(length, seed=length) for length in (1, 9, 30)] + [CONVERSATION[:40], CONVERSATION]


@pytest.fixture(scope="module")
def alone(model):
    """Each prompt by itself, computed whole."""
    engine = load(model, prefix_caching="off")
    return [generate(engine, [prompt], greedy_params(NUM_TOKENS))[0].token_ids for prompt in PROMPTS]


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
@pytest.mark.parametrize("prefix_caching", ["on", "off"])
@pytest.mark.parametrize("num_kv_blocks", [LEAST_POOL, 20 * LEAST_POOL], ids=["least pool", "ample pool"])
def test_same_tokens_whatever_the_pool_the_cache_and_the_chunks(model, alone, num_kv_blocks, prefix_caching, chunk):
    engine = load(
        model,
        num_kv_blocks=num_kv_blocks,
        block_size=BLOCK_SIZE,
        prefix_caching=prefix_caching,
        max_batch_size=min(chunk, 8),
        max_batched_tokens=chunk,
        max_seq_len=LEAST_POOL * BLOCK_SIZE,
    )
    requests = [request(prompt, greedy_params(NUM_TOKENS), n=1 + i % 2) for i, prompt in enumerate(PROMPTS)]
    for item in requests:
        engine.add(item)
    results = finish(engine, requests)
    assert [result.token_ids for result in results] == [
        expected for i, expected in enumerate(alone) for _ in range(1 + i % 2)
    ]
    assert any(result.num_cached_tokens for result in results) == (prefix_caching == "on")
    stats = engine.batcher.stats()
    assert (stats.num_preemptions > 0) == (num_kv_blocks == LEAST_POOL and chunk > 1)


def tokens(results):
    return [result.token_ids for result in results]


@pytest.fixture(scope="module")
def uncached(model):
    engine = load(model, prefix_caching="off")
    results = [generate(engine, [prompt], greedy_params(24))[0] for prompt in TURNS]
    assert [result.num_cached_tokens for result in results] == [0] * len(TURNS)
    return tokens(results)


@pytest.mark.parametrize("options", [{}, {"block_size": 5}, {"max_batched_tokens": 8, "max_batch_size": 8}])
def test_cached_equals_uncached(model, uncached, options):
    engine = load(model, **options)
    size = options.get("block_size", 16)
    generate(engine, [CONVERSATION], greedy_params(1))
    together = generate(engine, TURNS, greedy_params(24))
    assert tokens(together) == uncached
    expected = [min(70, len(prompt) - 1) // size * size for prompt in TURNS]
    assert [result.num_cached_tokens for result in together] == expected


def test_the_logits_after_a_cached_prefix_are_those_of_a_computed_one(model):
    logits = []
    for prefix_caching in ("on", "off"):
        engine = load(model, prefix_caching=prefix_caching)
        generate(engine, [CONVERSATION], greedy_params(1))
        recorded = record_logits(engine)
        generate(engine, [TURNS[2]], greedy_params(24))
        logits.append(torch.cat(recorded))
    assert relative_error(*logits) <= 1e-5


def test_a_conversation_finds_its_answers_too(model):
    """What was generated is cached as what was read: the next turn brings both back in its prompt."""
    engine, cold = load(model), load(model, prefix_caching="off")
    (first,) = generate(engine, [CONVERSATION], greedy_params(50))
    turn = CONVERSATION + first.token_ids + make_prompt(5)
    (second,) = generate(engine, [turn], greedy_params(24))
    assert second.num_cached_tokens == (70 + 49) // 16 * 16  # the last token was sampled, never computed
    assert generate(cold, [turn], greedy_params(24))[0].token_ids == second.token_ids


def test_sharing_goes_on_through_preemption_and_eviction(model, uncached):
    """A pool for one and a half: sequences share a prefix, lose their blocks and find some of them again."""
    engine = load(model, num_kv_blocks=12, max_seq_len=160)
    for _ in range(3):
        results = generate(engine, TURNS, greedy_params(24))
        assert tokens(results) == uncached
    assert engine.batcher.num_preemptions > 0
    assert any(result.num_cached_tokens for result in results)


def test_a_prefix_is_shared_while_its_first_holder_lives_or_after_it_was_aborted(model, uncached):
    engine = load(model)
    first = request(CONVERSATION, greedy_params(100))
    engine.add(first)
    engine.step()
    second = request(TURNS[1], greedy_params(24))
    engine.add(second)
    engine.step()
    engine.abort(AbortRequest(first.request_id))
    assert engine.batcher.stats().num_used_blocks == 5
    while engine.has_work:
        engine.step()
    assert tokens(generate(engine, [TURNS[1]], greedy_params(24))) == [uncached[1]]

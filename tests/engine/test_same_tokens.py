"""Greedy tokens are the same whatever the pool, the prefix cache and the size of chunks, on real (tiny) models."""

import pytest

from tests.support.running import finish, generate, greedy_params, load, make_prompt, request

BEGINNING = make_prompt(48, seed=1)
PROMPTS = [
    make_prompt(1),
    make_prompt(17, seed=2),
    *(BEGINNING[:length] + make_prompt(rest, seed=3 + rest) for length, rest in ((20, 2), (48, 1), (48, 22), (33, 9))),
]
NUM_TOKENS = 12
BLOCK_SIZE = 4
LEAST_POOL = -(-(max(len(prompt) for prompt in PROMPTS) + NUM_TOKENS) // BLOCK_SIZE)  # the longest fits, alone


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

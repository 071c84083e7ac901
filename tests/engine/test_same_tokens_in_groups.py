"""Greedy tokens are the same whatever the pool, the prefix cache and the chunks, also where layers see little."""

import pytest

from engine.protocol import AbortRequest
from engine.retention import most_held
from tests.support.running import Result, finish, generate, greedy_params, load, make_prompt, request

VARIANTS = ["mixed", "local", "sparse 8"]
BLOCK_SIZE = 4
BEGINNING = make_prompt(150, seed=1)
PROMPTS = [
    make_prompt(1),
    make_prompt(90, seed=2),
    *(
        BEGINNING[:length] + make_prompt(rest, seed=3 + rest)
        for length, rest in ((20, 2), (120, 1), (150, 22), (77, 9))
    ),
]
NUM_TOKENS, CHUNK = 20, 7
LONGEST = max(map(len, PROMPTS)) + NUM_TOKENS


PARAMS = greedy_params(NUM_TOKENS, logprobs=0)


def expect_same(results, expected):
    """Greedy tokens, and their logprobs, as random models say the same over and over."""
    assert [result.token_ids for result in results] == [result.token_ids for result in expected]
    for result, other in zip(results, expected, strict=True):
        logprobs = ([token.logprob for token in one.logprobs] for one in (result, other))
        assert next(logprobs) == pytest.approx(next(logprobs), abs=1e-4)


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, make_dynamic_moe):
    return make_dynamic_moe(request.param)


@pytest.fixture(scope="module")
def alone(folder):
    """Each prompt by itself, computed whole."""
    engine = load(folder, prefix_caching="off")
    return [generate(engine, [prompt], PARAMS)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("prefix_caching", ["on", "off"])
@pytest.mark.parametrize("pool", [1, 8], ids=["least pool", "ample pool"])
def test_same_tokens_whatever_the_pool_and_the_cache(folder, alone, pool, prefix_caching):
    options = {"block_size": BLOCK_SIZE, "max_batched_tokens": CHUNK, "max_batch_size": 6}
    windows = load(folder, **options, num_kv_blocks=100).batcher.kv_cache._windows
    least = most_held(windows, -(-LONGEST // BLOCK_SIZE), CHUNK)  # the longest fits, alone
    engine = load(folder, **options, num_kv_blocks=pool * least, prefix_caching=prefix_caching, max_seq_len=LONGEST)
    assert engine.info.max_seq_len == LONGEST
    for _ in range(1 + (prefix_caching == "on")):  # of the second time, much is cached, but not in the least pool
        requests = [request(prompt, PARAMS) for prompt in PROMPTS]
        for item in requests:
            engine.add(item)
        results = finish(engine, requests)
        expect_same(results, alone)
        engine.batcher.check_idle()
    if pool > 1 and prefix_caching == "on":
        cached = [len(prompt) - 1 - result.num_cached_tokens for prompt, result in zip(PROMPTS, results, strict=True)]
        assert max(cached) < BLOCK_SIZE, "all but the last block was there"


def test_a_prefix_of_one_that_lives_or_was_aborted_is_found(folder, alone):
    engine = load(folder, block_size=BLOCK_SIZE, max_batched_tokens=40, max_batch_size=8)
    first = request(BEGINNING, greedy_params(100))
    engine.add(first)
    for _ in range(8):
        engine.step()
    for num_cached in (144, 168):
        item, result = request(PROMPTS[4], PARAMS), Result()
        engine.add(item)
        while result.finish_reason is None:
            for output in engine.step().outputs:
                if output.request_id == item.request_id:
                    result.add(output)
        expect_same([result], [alone[4]])
        assert result.num_cached_tokens >= num_cached
        engine.abort(AbortRequest(first.request_id))
        assert engine.batcher.stats().num_used_blocks == 0


def test_local_layers_alone_serve_many_times_the_streams_that_full_ones_would(make_dynamic_moe):
    """The pool holds one sequence of full attention."""
    folder = make_dynamic_moe("local", max_position_embeddings=2048)
    engine = load(
        folder, num_kv_blocks=2048 // 16, max_batch_size=16, max_batched_tokens=64, prefill_share=float("inf")
    )
    assert engine.info.max_seq_len == 2048
    requests = [request(make_prompt(1000, seed=i), greedy_params(160)) for i in range(8)]
    for item in requests:
        engine.add(item)
    most_running = most_used = 0
    while engine.has_work:
        stats = engine.step().stats
        most_running, most_used = max(most_running, stats.num_running), max(most_used, stats.num_used_blocks)
    assert engine.batcher.num_preemptions == 0
    assert most_running == 8
    assert most_used <= 8 * 4 + 64 // 16 + 8
    engine.batcher.check_idle()

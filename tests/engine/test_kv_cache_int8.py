"""--kv-cache-dtype int8: near the whole numbers, the same in any batch, and half the memory."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError
from tests.support import tiny_deepseek
from tests.support.kv_cache import PROMPTS, top_logprobs
from tests.support.running import generate, greedy_params, load
from tests.support.tiny import write_llama


@pytest.fixture(scope="module", params=["llama", "v2-lite"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return write_llama(folder) if request.param == "llama" else tiny_deepseek.write(folder, request.param)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_all_kernels_compute_the_same_from_it(model, kernels):
    expected = top_logprobs(model, kernels="reference", kv_cache_dtype="int8")
    assert top_logprobs(model, kernels=kernels, kv_cache_dtype="int8") == pytest.approx(expected, abs=0.02)


def test_logprobs_are_near_those_of_whole_numbers(model):
    whole, quantized = top_logprobs(model), top_logprobs(model, kv_cache_dtype="int8")
    assert quantized == pytest.approx(whole, abs=0.3)
    assert quantized != whole, "nothing was quantised"


def test_a_sequence_s_tokens_are_the_same_alone_in_a_batch_and_computed_anew(model):
    load_int8 = {"kv_cache_dtype": "int8", "max_batch_size": 8}
    alone = [generate(load(model, **load_int8), [prompt], greedy_params(24))[0].token_ids for prompt in PROMPTS]
    for options in ({}, {"max_batched_tokens": 17, "block_size": 7}, {"block_size": 4, "num_kv_blocks": 70}):
        engine = load(model, **load_int8, **options)
        assert [result.token_ids for result in generate(engine, PROMPTS, greedy_params(24))] == alone


def test_the_same_memory_holds_more_blocks(model):
    whole, quantized = (
        load(model, dtype="bfloat16", kv_cache_dtype=dtype, kv_cache_memory=0.01).info.num_blocks
        for dtype in ("auto", "int8")
    )
    row = 16 if "llama" in model.name else 40  # values, which int8 has at half the size; then 4 bytes a scale
    scales = 1 if "llama" in model.name else 2
    assert quantized / whole == pytest.approx(2 * row / (row + 4 * scales), rel=0.01)


def test_a_model_that_selects_refuses_it(tmp_path):
    folder = tiny_deepseek.write(tmp_path / "v32", "v32")
    with pytest.raises(
        ConfigError, match=r"--kv-cache-dtype is int8; for a model with an indexer .* only auto is valid"
    ):
        load(folder, kv_cache_dtype="int8")

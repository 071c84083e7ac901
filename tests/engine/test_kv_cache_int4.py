"""--kv-cache-dtype int4: near the whole numbers, the same in any batch, a third of the memory, and what refuses it."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError
from tests.support import tiny_deepseek, tiny_dynamic_moe
from tests.support.kv_cache import PROMPTS, top_logprobs
from tests.support.running import generate, greedy_params, load
from tests.support.tiny import write_llama

INT4 = {"kv_cache_dtype": "int4", "max_batch_size": 8}


@pytest.fixture(scope="module", params=["llama", "v2-lite"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        return write_llama(folder, head_dim=32)
    return tiny_deepseek.write(folder, request.param, kv_lora_rank=32)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_all_kernels_compute_the_same_from_it(model, kernels):
    expected = top_logprobs(model, kernels="reference", kv_cache_dtype="int4")
    assert top_logprobs(model, kernels=kernels, kv_cache_dtype="int4") == pytest.approx(expected, abs=0.05)


def test_logprobs_are_near_those_of_whole_numbers(model):
    whole, quantized = top_logprobs(model), top_logprobs(model, kv_cache_dtype="int4")
    assert quantized == pytest.approx(whole, abs=0.6)
    assert quantized != whole, "nothing was quantised"


def test_a_sequence_s_tokens_are_the_same_alone_in_a_batch_computed_anew_and_cached(model):
    alone = [generate(load(model, **INT4), [prompt], greedy_params(24))[0].token_ids for prompt in PROMPTS]
    others = [{}, {"max_batched_tokens": 17, "block_size": 32}, {"num_kv_blocks": 20}]
    if "v2" in model.name:
        others.append({"block_size": 7})  # latents lie in rows
    for options in others:
        engine = load(model, **INT4, **options)
        for _ in range(2):  # then from the prefix cache
            assert [result.token_ids for result in generate(engine, PROMPTS, greedy_params(24))] == alone


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_patterns_of_layers_share_it(tmp_path, kernels):
    folder = tiny_dynamic_moe.write(tmp_path / "mixed", "mixed")
    options = {"kernels": kernels, "dtype": "float32"}
    whole, quantized = top_logprobs(folder, **options), top_logprobs(folder, kv_cache_dtype="int4", **options)
    assert quantized == pytest.approx(whole, abs=0.6)
    assert quantized != whole


def test_the_same_memory_holds_more_blocks(model):
    whole, quantized = (
        load(model, dtype="bfloat16", kv_cache_dtype=dtype, kv_cache_memory=0.01).info.num_blocks
        for dtype in ("auto", "int4")
    )
    # keys of 32 values: 16 bytes, 4 of fifth bits, a scale; values. Latents of 32: 16 bytes, 16 of a key, two scales.
    expected = 2 * 64 / (16 + 4 + 2 + 16 + 2) if "llama" in model.name else 2 * 48 / (16 + 16 + 4)
    assert quantized / whole == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: tiny_deepseek.write(folder, "v32"), {}, r"a model with an indexer .* only auto is valid"),
        (lambda folder: tiny_deepseek.write(folder, "v2-lite"), {}, "latents have 24 values, and a multiple of 32"),
        (lambda folder: write_llama(folder, head_dim=24), {}, "heads have 24 values, and a multiple of 16"),
        (write_llama, {"block_size": 8}, "blocks must have a multiple of 16 tokens; they have 8"),
    ],
    ids=["indexer", "latents", "heads", "blocks"],
)
def test_what_it_cannot_hold_is_refused(tmp_path, make, options, message):
    with pytest.raises(ConfigError, match=f"--kv-cache-dtype is int4.* {message}"):
        load(make(tmp_path / "model"), kv_cache_dtype="int4", **options)

"""--batch-invariant: log-probabilities are the same bits however the prompt is cut, cached and accompanied."""

import pytest

from engine.errors import ConfigError
from tests.support.running import finish, generate, greedy_params, load, make_prompt, request

PROMPT = make_prompt(300)
PARAMS = greedy_params(8, logprobs=5)
OTHERS = [make_prompt(length, seed=length) for length in (5, 90, 200)]


def answers(folder, **options):
    """The same prompt alone and whole; in chunks; from the cache; beside others."""
    options = {"dtype": "bfloat16", "kernels": "native", "threads": 2, "max_batch_size": 8} | options
    found = generate(load(folder, **options), [PROMPT], PARAMS)
    engine = load(folder, max_batched_tokens=64, **options)
    found += generate(engine, [PROMPT], PARAMS)
    found += generate(engine, [PROMPT], PARAMS)
    engine = load(folder, max_batched_tokens=250, **options)
    beside = [request(prompt, greedy_params(40)) for prompt in OTHERS]
    item = request(PROMPT, PARAMS)
    for one in [*beside, item]:
        engine.add(one)
    found += finish(engine, [*beside, item])[-1:]
    assert found[2].num_cached_tokens
    return [(result.token_ids, result.logprobs) for result in found]


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("variant", ["v2-lite", "v3"])
def test_latent_attention(make_deepseek, variant, quantization):
    alone, *others = answers(make_deepseek(variant), batch_invariant="on", quantization=quantization)
    assert others == [alone] * 3


def test_latent_attention_is_not_otherwise(make_deepseek):
    alone, *others = answers(make_deepseek("v2-lite"))
    assert others != [alone] * 3


def test_other_models_are_anyway(tiny_llama, make_dynamic_moe):
    for folder in (tiny_llama, make_dynamic_moe("mixed")):
        alone, *others = answers(folder)
        assert others == [alone] * 3


@pytest.mark.parametrize(
    ("variant", "options", "reason"),
    [
        ("v2-lite", {"kernels": "torch"}, "--kernels torch"),
        ("v2-lite", {"dtype": "float32"}, "--dtype float32"),
        ("v32", {}, "an indexer"),
    ],
)
def test_what_cannot_promise_it_is_refused(make_deepseek, variant, options, reason):
    with pytest.raises(ConfigError, match=f"--batch-invariant is on.* {reason}"):
        load(make_deepseek(variant), **{"dtype": "bfloat16", "kernels": "native", **options}, batch_invariant="on")

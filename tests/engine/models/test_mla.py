"""Latent attention: the absorbed and the expanded form, what is cached, and the pairing of rotary dimensions."""

import math

import pytest

from engine.models import mla, mla_plan
from tests.support import tiny_deepseek
from tests.support.running import assert_parity, generate, greedy_params, load, make_prompt


@pytest.fixture
def expanded(monkeypatch):
    """A list that grows with each call of the expanded attention."""
    calls, attend = [], mla.MultiHeadLatentAttention._attend_expanded
    monkeypatch.setattr(
        mla.MultiHeadLatentAttention, "_attend_expanded", lambda *args: calls.append(args) or attend(*args)
    )
    return calls


@pytest.mark.parametrize("form", ["expanded", "expanded by heads", "absorbed"])
@pytest.mark.parametrize("variant", ["v2-lite", "v3"])
def test_long_prompts_equal_transformers_in_both_forms(make_deepseek, variant, form, expanded, monkeypatch):
    if form == "absorbed":
        monkeypatch.setattr(mla_plan, "_min_expanded_queries", lambda config: math.inf)
    elif form == "expanded by heads":
        monkeypatch.setattr(mla, "_MAX_EXPANDED_VALUES", 1)
    folder = make_deepseek(variant)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(300), 8)
    assert len(expanded) == (0 if form == "absorbed" else 3)  # in each layer


@pytest.mark.parametrize("variant", ["v2-lite", "v3"])
def test_a_step_of_decodes_short_and_long_chunks_keeps_them_apart(make_deepseek, variant, expanded):
    prompts = [make_prompt(length, seed=length) for length in (3, 200, 31, 90)]
    alone = [generate(load(make_deepseek(variant)), [prompt], greedy_params(24))[0].token_ids for prompt in prompts]
    expanded.clear()
    engine = load(make_deepseek(variant), max_batched_tokens=150)
    assert [result.token_ids for result in generate(engine, prompts, greedy_params(24))] == alone
    assert expanded


@pytest.mark.parametrize("variant", ["v2-lite", "v3", "v32"])
def test_the_cache_holds_the_latent_and_the_rotary_key_and_nothing_else(make_deepseek, variant):
    engine = load(make_deepseek(variant), num_kv_blocks=50)
    values = sum(cache.numel() for layer in engine.executor.runner.kv_pool.layers for cache in layer)
    index_keys = 24 if variant == "v32" else 0
    assert values == 50 * 16 * 3 * (24 + 16 + index_keys)


def test_rope_over_halves_instead_of_neighbours(make_deepseek):
    folder = make_deepseek("v3", rope_interleave=False)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 32)


def test_yarn_whose_two_mscales_differ(make_deepseek):
    yarn = tiny_deepseek.VARIANTS["v3"][1]["rope_parameters"] | {"mscale": 1.0, "mscale_all_dim": 0.5}
    folder = make_deepseek("v3", rope_parameters=yarn)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 16)

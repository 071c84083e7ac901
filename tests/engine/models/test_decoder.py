"""The decoder against transformers: logits and greedy tokens of tiny random checkpoints of every kind."""

import logging
import math

import pytest
import torch

from tests.support import checkpoints, tiny, tiny_deepseek
from tests.support.running import assert_parity, generate, greedy_params, load, make_prompt, prompt_logits

LLAMAS = {
    "every head its own keys": {"num_key_value_heads": 4},
    "two heads a key head": {"num_key_value_heads": 2},
    "four heads a key head": {"num_key_value_heads": 1},
    "three heads a key head": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96},
    "wide heads": {"head_dim": 32},
    "heads of no compiled size": {"head_dim": 24},
    "narrow heads": {"head_dim": 8},
    "tied head": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "odd sizes": {"hidden_size": 60, "head_dim": 10, "intermediate_size": 77, "vocab_size": 301, "rms_norm_eps": 1e-3},
    "one layer": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("config", LLAMAS.values(), ids=LLAMAS.keys())
def test_parity_of_llama_with_transformers(make_llama, config):
    folder = make_llama(**config)
    assert_parity(load(folder), tiny.reference(folder), make_prompt(37), 64)


@pytest.mark.parametrize("variant", tiny_deepseek.VARIANTS)
def test_parity_of_deepseek_with_transformers(make_deepseek, variant):
    folder = make_deepseek(variant)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 64)


@pytest.mark.parametrize("changes", [{"rms_norm_eps": 1e-2}, {"first_k_dense_replace": 0}], ids=str)
@pytest.mark.parametrize("variant", ["v2-lite", "v3"])
def test_parity_with_other_settings(make_deepseek, variant, changes):
    folder = make_deepseek(variant, **changes)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 16)


@pytest.mark.parametrize("kernels", ["reference", "torch"])
@pytest.mark.parametrize("variant", ["llama", "v2", "v3", "v32"])
def test_parity_on_other_kernels(tiny_llama, make_deepseek, variant, kernels):
    folder = tiny_llama if variant == "llama" else make_deepseek(variant)
    assert_parity(load(folder, kernels=kernels), tiny_deepseek.reference(folder), make_prompt(30), 24)


def test_v1_equals_a_qwen2_moe_with_half_a_gate_and_its_code_is_never_run(tmp_path):
    reference = tiny_deepseek.write_v1(tmp_path)
    assert_parity(load(tmp_path), reference, make_prompt(40), 64)


def test_greedy_tokens_are_those_that_transformers_generates_one_by_one(tiny_llama):
    prompt = make_prompt(9, seed=4)
    (result,) = generate(load(tiny_llama), [prompt], greedy_params(64))
    assert result.token_ids == tiny.greedy(tiny.reference(tiny_llama), prompt, 64)


@pytest.mark.parametrize("variant", ["llama", "v2", "v3", "v32"])
def test_a_bf16_checkpoint_equals_its_reference_in_fp32_and_is_near_it_in_bf16(make_llama, make_deepseek, variant):
    make = make_llama if variant == "llama" else lambda **config: make_deepseek(variant, **config)
    folder, prompt = make(dtype=torch.bfloat16), make_prompt(40)
    reference = tiny_deepseek.reference(folder)
    assert_parity(load(folder), reference, prompt, 16)
    with torch.no_grad():
        expected = reference(torch.tensor([prompt])).logits[0]
    # A near tie in a router or an indexer can go the other way in bf16, so the typical position counts.
    errors = (prompt_logits(load(folder, dtype="bfloat16"), prompt) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 0 < errors.median() < 0.05


def test_mtp_layers_are_ignored_without_a_warning(make_deepseek, tmp_path, caplog):
    folder = make_deepseek("v3")
    expected = generate(load(folder), [make_prompt(20)], greedy_params(16))
    with_mtp = checkpoints.copy(folder, tmp_path / "mtp", num_nextn_predict_layers=1)
    names = ("enorm.weight", "eh_proj.weight", "shared_head.norm.weight", "mlp.experts.7.up_proj.weight")
    added = {f"model.layers.3.{name}": torch.randn(8) for name in names}
    checkpoints.edit_weights(with_mtp, lambda tensors: tensors.update(added))
    with caplog.at_level(logging.WARNING):
        assert generate(load(with_mtp), [make_prompt(20)], greedy_params(16)) == expected
    assert not caplog.records


def test_a_stored_copy_of_a_tied_head_is_ignored(make_llama, tmp_path):
    tied = make_llama(tie_word_embeddings=True)
    folder = checkpoints.copy(tied, tmp_path / "tied")
    head = {"lm_head.weight": torch.full((258, 64), math.nan)}
    checkpoints.edit_weights(folder, lambda tensors: tensors.update(head))
    results = [generate(load(path), [make_prompt(5)], greedy_params(8)) for path in (folder, tied)]
    assert results[0] == results[1]

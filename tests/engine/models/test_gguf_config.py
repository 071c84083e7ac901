"""GGUF metadata: the same config as the folder that a file was made from, and the name of each key that is refused."""

import math
import re

import numpy as np
import pytest

from engine.loading.gguf_file import GGUFFile
from engine.loading.resolve import resolve_model
from engine.models import registry
from engine.models.config import ModelConfig
from tests.support import checkpoints, tiny, tiny_deepseek
from tests.support.gguf_writer import GGUF_VARIANTS, write_gguf
from tests.support.running import assert_parity, load, make_prompt


def check_config(path, folder, differing):
    ours, theirs = resolve_model(str(path)).read_config(), registry.read_folder(folder)
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)
    assert ours.rope_scaling.get("rope_type") == theirs.rope_scaling.get("rope_type")
    for name in ModelConfig.__dataclass_fields__.keys() - {"rms_norm_eps", "dtype"} - differing:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_the_config_of_a_llama_is_the_folder_s(tiny_llama, tiny_gguf):
    check_config(tiny_gguf, tiny_llama, set())


@pytest.mark.parametrize("split_kv_b", [True, False], ids=["split kv_b", "whole kv_b"])
@pytest.mark.parametrize("variant", GGUF_VARIANTS)
def test_the_config_of_a_deepseek_is_the_folder_s(make_deepseek, tmp_path, variant, split_kv_b):
    write_gguf(make_deepseek(variant), tmp_path / "model.gguf", split_kv_b=split_kv_b)
    differing = {"rope_scaling", "architecture", "head_dim", "num_nextn_predict_layers"}
    check_config(tmp_path / "model.gguf", make_deepseek(variant), differing)


def test_end_of_turn_tokens_end_a_sequence_too(tiny_llama, tmp_path):
    write_gguf(tiny_llama, tmp_path / "model.gguf", tokenizer__ggml__eot_token_id=5)
    assert resolve_model(str(tmp_path / "model.gguf")).read_config().eos_token_ids == (257, 5)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("linear", {"type": "linear", "factor": 3.0}),
        ("yarn", {"type": "yarn", "factor": 4.0, "original_context_length": 128}),
    ],
)
def test_rope_scaling_of_the_metadata(make_llama, tmp_path, name, scaling):
    folder = make_llama(rope_parameters=tiny.ROPES[name])
    write_gguf(
        folder, tmp_path / "model.gguf", **{f"llama__rope__scaling__{key}": value for key, value in scaling.items()}
    )
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(201), 16)


def test_llama3_rope_scaling_as_stored_factors(make_llama, tmp_path):
    rope = tiny.ROPES["llama3"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, 16, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / 16)
        smooth = (rope["original_max_position_embeddings"] / wavelength - low) / (high - low)
        smooth = min(1.0, max(0.0, smooth))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    assert 1.0 in factors
    assert 8.0 in factors
    folder = make_llama(rope_parameters=rope)
    write_gguf(folder, tmp_path / "model.gguf", extra={"rope_freqs.weight": np.array(factors, dtype=np.float32)})
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(201), 16)


def test_keys_that_change_nothing_may_be_there(tiny_llama, tmp_path):
    harmless = {
        "vocab_size": 258,
        "tensor_data_layout": "Meta AI original pth",
        "expert_count": 0,
        "expert_used_count": 0,
        "attention.value_length": 16,
        "attention.causal": True,
        "attention.scale": 0.0,
        "attention.sliding_window": 1 << 20,
        "logit_scale": 1.0,
        "rope.dimension_count": 16,
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "rope.scaling.finetuned": False,
        "rope.scaling.yarn_ext_factor": -1.0,
    }
    write_gguf(tiny_llama, tmp_path / "model.gguf", **{f"llama.{name}": value for name, value in harmless.items()})
    check_config(tmp_path / "model.gguf", tiny_llama, set())


def test_the_attention_factor_of_yarn(make_llama, tmp_path):
    folder = make_llama(rope_parameters=tiny.ROPES["yarn"] | {"attention_factor": 1.3})
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_attn_factor": 1.3}
    write_gguf(folder, tmp_path / "model.gguf", **{f"llama.rope.scaling.{key}": value for key, value in keys.items()})
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(201), 16)


@pytest.mark.parametrize("betas", [{"beta_fast": 2}, {"beta_slow": 0.25}], ids=str)
def test_other_betas_of_yarn(make_deepseek, tmp_path, betas):
    yarn = tiny_deepseek.VARIANTS["v3"][1]["rope_parameters"]
    folder = make_deepseek("v3", rope_parameters=yarn | betas)
    write_gguf(folder, tmp_path / "model.gguf")
    assert_parity(load(tmp_path / "model.gguf"), tiny_deepseek.reference(folder), make_prompt(40), 32)


def test_keys_that_older_files_lack_say_what_v2_lite_has(make_deepseek, tmp_path):
    folder, path = make_deepseek("v2-lite"), tmp_path / "model.gguf"
    names = ("gating_func", "group_count", "group_used_count", "weights_scale")
    write_gguf(folder, path, **{f"deepseek2__expert_{name}": None for name in names})
    assert not any(f"deepseek2.expert_{name}" in GGUFFile(path).metadata for name in names)
    assert_parity(load(path), tiny_deepseek.reference(folder), make_prompt(40), 32)


def test_without_group_counts_all_experts_are_eligible(make_deepseek, tmp_path):
    folder, path = make_deepseek("v3"), tmp_path / "model.gguf"
    write_gguf(folder, path, deepseek2__expert_group_count=None, deepseek2__expert_group_used_count=None)
    ungrouped = checkpoints.copy(folder, tmp_path / "twin", n_group=1, topk_group=1)
    assert_parity(load(path), tiny_deepseek.reference(ungrouped), make_prompt(40), 32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "qwen2", r"architecture 'qwen2' is not supported yet"),
        ("general.alignment", 0, "damaged"),
        ("general.alignment", "32", "damaged"),
        ("llama.expert_count", 8, "experts"),
        ("llama.block_count", None, r"lacks 'llama\.block_count'"),
        ("llama.block_count", 4, r"missing: model\.layers\.3\."),
        ("llama.block_count", 2, r"unexpected: model\.layers\.2\."),
        ("llama.embedding_length", "64", "embedding_length"),
        ("llama.feed_forward_length", 100, r"misshapen: .*down_proj\.weight is \[64, 96\], expected \[64, 100\]"),
        ("llama.attention.head_count", 0, "head_count"),
        ("llama.attention.head_count", [4, 4, 4], "head_count"),
        ("llama.attention.head_count", 16, r"misshapen: .*q_proj\.weight is \[64, 64\], expected \[256, 64\]"),
        ("llama.attention.head_count", 24, r"misshapen: .*q_proj\.weight is \[64, 64\], expected \[384, 64\]"),
        ("llama.attention.head_count_kv", 0, "head_count_kv|num_key_value_heads"),
        ("llama.attention.head_count_kv", 3, "is not a multiple of num_key_value_heads"),
        ("llama.attention.key_length", 15, "15 dimensions rotate"),
        ("llama.attention.value_length", 32, r"llama\.attention\.value_length in the GGUF file is 32; expected 16"),
        ("llama.attention.layer_norm_rms_epsilon", 4e9, "rms_epsilon .* expected a positive number up to 1"),
        ("llama.attention.causal", False, r"causal in the GGUF file is False; expected True"),
        ("llama.attention.sliding_window", 16, r"attention\.sliding_window of the GGUF file is 16; .* not read here"),
        ("llama.attention.scale", 0.5, r"attention\.scale of the GGUF file is 0\.5; .* not read here"),
        ("llama.logit_scale", 0.5, r"llama\.logit_scale in the GGUF file is 0\.5; expected 1"),
        ("llama.rope.dimension_count", 8, r"llama\.rope\.dimension_count in the GGUF file is 8; expected 16"),
        ("llama.rope.scale_linear", 4.0, r"llama\.rope\.scale_linear in the GGUF file is 4\.0; expected 1"),
        ("llama.rope.scaling.factor", 4.0, r"llama\.rope\.scaling\.factor in the GGUF file is 4\.0; expected 1"),
        ("llama.rope.scaling.type", "linear", r"lacks 'llama\.rope\.scaling\.factor'"),
        ("tokenizer.ggml.tokens", None, r"lacks 'tokenizer\.ggml\.tokens'"),
        ("tokenizer.ggml.tokens", 5, r"tokenizer\.ggml\.tokens"),
        ("tokenizer.ggml.eot_token_id", [5], r"eot_token_id in the GGUF file is \[5\]; expected a whole number"),
        ("tokenizer.ggml.eot_token_id", 258, "eot_token_id in the GGUF file is 258; expected .* from 0 to 257"),
        ("tokenizer.ggml.eot_token_id", (1 << 32) - 1, "eot_token_id in the GGUF file is 4294967295; expected"),
        ("tokenizer.ggml.eos_token_id", True, "eos_token_id in the GGUF file is True; expected a whole number"),
        ("deepseek2.rope.scaling.yarn_log_multiplier", "0.1", r"yarn_log_multiplier .* expected a positive number"),
        ("deepseek2.expert_count", None, r"lacks 'deepseek2\.expert_count'"),
        (
            "deepseek2.expert_count",
            12,
            r"missing: .*experts\.10\..*misshapen: .*gate\.weight is \[8, 64\], expected \[12,",
        ),
        ("deepseek2.expert_group_count", 3, r"n_routed_experts \(8\) is not a multiple of n_group \(3\)"),
        ("deepseek2.expert_group_used_count", 5, "expert_group_used_count|topk_group"),
        ("deepseek2.expert_used_count", 5, r"num_experts_per_tok \(5\) exceeds the experts of topk_group groups"),
        ("deepseek2.expert_gating_func", 3, r"func in the GGUF file is 3; expected 1 \(softmax\) or 2 \(sigmoid"),
        ("deepseek2.expert_weights_norm", 1, r"expert_weights_norm in the GGUF file is 1; expected true or false"),
        ("deepseek2.leading_dense_block_count", 2, r"unexpected: model\.layers\.1\.mlp\.experts\."),
        ("deepseek2.attention.q_lora_rank", None, r"missing: .*q_proj\.weight; unexpected: .*q_a_layernorm"),
        ("deepseek2.attention.kv_lora_rank", 25, r"attention\.key_length in the GGUF file is 40; expected 41"),
        ("deepseek2.attention.head_count_kv", 2, r"head_count_kv in the GGUF file is 2; expected 1 or 4"),
        (
            "deepseek2.nextn_predict_layers",
            1,
            r"deepseek2\.nextn_predict_layers of the GGUF file is 1; .* not read here",
        ),
        ("deepseek2.attention.value_length_mla", None, r"lacks 'deepseek2\.attention\.value_length_mla'"),
        (
            "deepseek2.attention.key_length_mla",
            40,
            r"misshapen: .*kv_b_proj\.weight is \[128, 24\], expected \[144, 24\]",
        ),
        ("deepseek2.attention.key_length_mla", 10, "key_length_mla|qk_nope_head_dim"),
        ("deepseek2.rope.dimension_count", 15, "15 dimensions rotate"),
    ],
)
def test_a_key_that_does_not_fit_is_named(tiny_llama, make_deepseek, tmp_path, key, value, message):
    folder = make_deepseek("v3") if key.startswith("deepseek2") else tiny_llama
    write_gguf(folder, tmp_path / "model.gguf", **{key: value})
    assert re.search(message, checkpoints.refusal(tmp_path / "model.gguf"))


def test_a_key_that_llama_cpp_does_not_have_is_a_note(tiny_llama, tmp_path, caplog):
    write_gguf(tiny_llama, tmp_path / "model.gguf", **{"llama.trained_on": "letters"})
    check_config(tmp_path / "model.gguf", tiny_llama, set())
    assert "llama.trained_on of the GGUF file is not a key of llama.cpp; it is ignored" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "'longrope' is not supported"),
        ({"deepseek2.expert_count": 4, "deepseek2.expert_group_count": 2}, "unexpected: model.layers.1.mlp.experts.4."),
    ],
)
def test_two_keys_that_do_not_fit_are_named(tiny_llama, make_deepseek, tmp_path, metadata, message):
    write_gguf(make_deepseek("v3") if "expert" in message else tiny_llama, tmp_path / "model.gguf", **metadata)
    assert message in checkpoints.refusal(tmp_path / "model.gguf")

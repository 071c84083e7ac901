"""Decoders against transformers: the same checkpoint, logits and greedy tokens."""

import json
import shutil

import pytest
import torch

from engine.errors import ModelError
from engine.models import hf_config
from engine.models.rope import inverse_frequencies
from tests import tiny
from tests.engine.running import (
    assert_parity,
    generate,
    greedy_params,
    load,
    make_prompt,
    record_logits,
    relative_error,
)

SHAPES = {
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
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn, all set": {
        "rope_type": "yarn",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.25,
        "truncate": False,
    },
    "yarn with mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_parity_with_transformers(make_llama, config):
    folder = make_llama(**config)
    assert_parity(load(folder), tiny.reference(folder), make_prompt(37), 64)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_parity_with_transformers_under_rope_scaling(make_llama, rope):
    folder = make_llama(rope_parameters=rope)
    assert_parity(load(folder), tiny.reference(folder), make_prompt(201), 64)


@pytest.mark.parametrize("kernels", ["reference", "torch"])
def test_parity_with_transformers_on_other_kernels(tiny_llama, kernels):
    assert_parity(load(tiny_llama, kernels=kernels), tiny.reference(tiny_llama), make_prompt(37), 64)


def test_greedy_tokens_are_those_that_transformers_generates_one_by_one(tiny_llama):
    prompt = make_prompt(9, seed=4)
    (result,) = generate(load(tiny_llama), [prompt], greedy_params(64))
    assert result.token_ids == tiny.greedy(tiny.reference(tiny_llama), prompt, 64)


def test_dynamic_scaling_stretches_to_a_longer_max_seq_len(make_llama):
    folder = make_llama(rope_parameters=ROPES["dynamic"], max_position_embeddings=64)
    engine = load(folder, max_seq_len=150)
    recorded, prompt = record_logits(engine), make_prompt(150)
    generate(engine, [prompt], greedy_params(0, prompt_logprobs=0))
    with torch.no_grad():
        expected = tiny.reference(folder)(torch.tensor([prompt])).logits[0]
    assert relative_error(torch.cat(recorded), expected) <= 1e-4


def test_a_sharded_checkpoint_gives_the_same_as_one_file(tiny_llama, tmp_path):
    tiny.reference(tiny_llama).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").exists()
    prompt = make_prompt(20)
    (sharded,), (whole,) = (generate(load(folder), [prompt], greedy_params(32)) for folder in (tmp_path, tiny_llama))
    assert sharded == whole


@pytest.mark.parametrize(
    ("rope", "old"),
    [
        ("default", {"rope_theta": 500.0}),
        ("linear", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
        (
            "llama3",
            {"rope_theta": 10000.0, "rope_scaling": {k: v for k, v in ROPES["llama3"].items() if k != "rope_theta"}},
        ),
        ("default", {"rope_theta": 500.0, "rope_scaling": None}),
    ],
    ids=["plain", "type", "rope_type", "null"],
)
def test_an_old_config_means_what_the_new_one_says(make_llama, tmp_path, rope, old):
    folder = shutil.copytree(make_llama(rope_parameters=ROPES[rope]), tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config | old))
    assert_parity(load(folder), tiny.reference(make_llama(rope_parameters=ROPES[rope])), make_prompt(201), 16)


def test_the_config_reads_all_that_the_decoder_needs(make_llama):
    folder = make_llama(head_dim=32, num_key_value_heads=1, attention_bias=True)
    config = hf_config.read_folder(folder)
    assert (config.architecture, config.vocab_size, config.hidden_size) == ("LlamaForCausalLM", 258, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 1, 32)
    assert (config.max_position_embeddings, config.eos_token_ids, config.dtype) == (512, (257,), "float32")
    assert (config.attention_bias, config.mlp_bias, config.tie_word_embeddings) == (True, False, False)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (257, 257, (257,)),
        ([257, 3], None, (257, 3)),
        (None, [4, 5], (4, 5)),
        (257, [257, 9], (257, 9)),
        (None, None, ()),
    ],
)
def test_end_tokens_come_from_both_config_files(in_config, in_generation, expected):
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "eos_token_id": in_config,
    }
    config = hf_config.parse(raw, {"eos_token_id": in_generation})
    assert config.eos_token_ids == expected
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (4, 16, 10000.0)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope' is not supported; supported are default, linear"),
        ({"rope_type": "linear"}, "'linear' lacks 'factor'"),
        ({"rope_type": "llama3", "factor": 2.0}, "'llama3' lacks 'low_freq_factor'"),
    ],
)
def test_a_rope_scaling_that_is_not_computed_is_refused(scaling, message):
    with pytest.raises(ModelError, match=message):
        inverse_frequencies(16, 10000.0, scaling, 512, 512)

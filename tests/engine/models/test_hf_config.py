"""config.json: its old and new spellings, and the name of each setting that is refused."""

import pytest

from engine.errors import ModelError
from engine.models import registry
from engine.models.config import TaskHeads
from tests.support import checkpoints, tiny
from tests.support.running import assert_parity, generate, greedy_params, load, make_prompt

LLAMA3 = {key: value for key, value in tiny.ROPES["llama3"].items() if key != "rope_theta"}
RAW = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("rope", "old"),
    [
        ("default", {"rope_theta": 500.0}),
        ("linear", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
        ("llama3", {"rope_theta": 10000.0, "rope_scaling": LLAMA3}),
    ],
    ids=["plain", "type", "rope_type"],
)
def test_an_old_config_means_what_the_new_one_says(make_llama, tmp_path, rope, old):
    new = make_llama(rope_parameters=tiny.ROPES[rope])
    dtype = checkpoints.read_config(new)["dtype"]
    folder = checkpoints.copy(new, tmp_path / "old", rope_parameters=None, dtype=None, torch_dtype=dtype, **old)
    assert_parity(load(folder), tiny.reference(new), make_prompt(201), 16)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["int3", "float8_e4m3fn", "", 16, ["float32"]], ids=str)
def test_a_dtype_that_is_not_computed_in_is_refused(key, value):
    with pytest.raises(ModelError, match=rf"^{key} in config.json is .*; expected one of bfloat16, float16, float32$"):
        registry.parse(RAW | {key: value}, {})


def test_null_means_the_default():
    config = registry.parse(RAW | {"rope_theta": 500.0, "rope_scaling": None, "head_dim": None}, {})
    assert (config.rope_theta, config.rope_scaling, config.head_dim) == (500.0, {}, 16)


def test_the_config_reads_all_that_the_decoder_needs(make_llama):
    config = registry.read_folder(make_llama(head_dim=32, num_key_value_heads=1, attention_bias=True))
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
    config = registry.parse(RAW | {"eos_token_id": in_config}, {"eos_token_id": in_generation})
    assert config.eos_token_ids == expected
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (4, 16, 10000.0)


def test_a_missing_config_is_refused_and_a_missing_generation_config_is_not(folder):
    expected = generate(load(folder), [make_prompt(9)], greedy_params(4))
    (folder / "generation_config.json").unlink()
    assert generate(load(folder), [make_prompt(9)], greedy_params(4)) == expected
    (folder / "config.json").unlink()
    assert checkpoints.refusal(folder).endswith("config.json is missing")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"[1]", "is not a JSON object"),
        (b"\xff", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
    ],
    ids=["cut short", "list", "no text", "nested without end"],
)
def test_a_json_file_that_cannot_be_read_is_named(folder, name, content, reason):
    (folder / name).write_bytes(content)
    message = checkpoints.refusal(folder)
    assert name in message
    assert reason in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["DeepseekV4ForCausalLM"]},
            ["DeepseekV4ForCausalLM is not supported", "DeepseekV32ForCaus"],
        ),
        ({"architectures": None}, ["names no 'architectures'", "LlamaForCausalLM"]),
        ({"architectures": 5}, ["architectures"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "silu"]),
        ({"quantization_config": {"quant_method": "aqlm", "bits": 4}}, ["is 'aqlm'", "'compressed-tensors'"]),
        ({"quantization_config": "fp8"}, ["quantization_config"]),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": 5}}, ["weight_block_size"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads (4)", "num_key_value_heads (3)"]),
        ({"vocab_size": None}, ["config.json lacks 'vocab_size'"]),
        ({"vocab_size": 10**12}, ["vocab_size"]),
        ({"num_hidden_layers": None}, ["config.json lacks 'num_hidden_layers'"]),
        ({"num_hidden_layers": 3.5}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 4097}, ["num_hidden_layers", "to 4096"]),
        ({"num_hidden_layers": 4096}, ["missing: ", " more"]),
        ({"hidden_size": "64"}, ["hidden_size"]),
        ({"hidden_size": 10**5}, ["misshapen"]),
        ({"max_position_embeddings": 10**10}, ["max_position_embeddings"]),
        ({"rms_norm_eps": float("inf")}, ["rms_norm_eps"]),
        ({"rms_norm_eps": 4e9}, ["rms_norm_eps", "up to 1"]),
        ({"eos_token_id": [[2]]}, ["eos_token_id"]),
        ({"eos_token_id": "2"}, ["eos_token_id"]),
        ({"eos_token_id": [2, 10**6]}, ["eos_token_id is 1000000; expected ids below vocab_size"]),
        ({"bos_token_id": "x"}, ["bos_token_id is 'x'; expected a token id"]),
        ({"rope_parameters": "linear"}, ["rope_parameters"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "x"}}, ["factor"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": -2.0}}, ["factor"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": [1]}}, ["rope_theta"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
    ],
    ids=str,
)
def test_a_config_that_is_not_served_is_refused_by_name(folder, changes, words):
    checkpoints.edit_config(folder, changes)
    message = checkpoints.refusal(folder)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("v32", {"index_head_dim": 8}, ["index_head_dim (8)", "qk_rope_head_dim (16)"]),
        ("v32", {"q_lora_rank": None}, ["q_lora_rank"]),
        ("v3", {"routed_scaling_factor": float("inf")}, ["routed_scaling_factor"]),
        ("v3", {"n_routed_experts": 4 * 10**6}, ["missing: ", " more"]),
    ],
    ids=str,
)
def test_a_deepseek_config_that_is_not_served_is_refused_by_name(make_deepseek, tmp_path, variant, changes, words):
    message = checkpoints.refusal(checkpoints.copy(make_deepseek(variant), tmp_path / "changed", **changes))
    for word in words:
        assert word in message


def classifier(**config):
    return {**RAW, "architectures": ["LlamaForSequenceClassification"], **config}


@pytest.mark.parametrize(
    ("config", "labels", "activation"),
    [
        ({}, ("LABEL_0", "LABEL_1"), "softmax"),  # transformers leaves its defaults out
        ({"id2label": {"0": "no", "2": "maybe", "1": "yes"}}, ("no", "yes", "maybe"), "softmax"),
        ({"id2label": {"0": "relevant"}}, ("relevant",), "sigmoid"),
        ({"id2label": {"0": "score"}, "problem_type": "regression"}, ("score",), "none"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, ("LABEL_0", "LABEL_1", "LABEL_2"), "sigmoid"),
    ],
)
def test_labels_of_a_classifier(config, labels, activation):
    heads = registry.parse(classifier(**config), {}).task_heads
    assert heads == TaskHeads(generates=False, labels=labels, label_activation=activation)
    assert heads.tasks == ("embed", "classify")


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {}},
        {"id2label": ["a"]},
        {"id2label": {"1": "a"}},
        {"id2label": {"0": "a", "zero": "b"}},
        {"id2label": {"0": 1}},
        {"id2label": {"0": "\ud800"}},
        {"num_labels": 0},
        {"num_labels": (1 << 16) + 1},
        {"problem_type": "guess"},
    ],
)
def test_labels_that_cannot_be(config):
    with pytest.raises(ModelError, match=next(iter(config))):
        registry.parse(classifier(**config), {})

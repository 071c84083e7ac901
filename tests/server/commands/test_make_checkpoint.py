"""deepseek-serve make-checkpoint: what it writes can be served, and what it cannot write it names."""

import json

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from engine.loading.presets import PRESETS
from server import LLM, SamplingParams
from server.commands import make_checkpoint

SMALL = ["--hidden", "64", "--layers", "2"]
UNKNOWN_TO_TRANSFORMERS = ("moe-16b", "dynamic-moe")


def make(folder, tokenizer, *arguments):
    return make_checkpoint.main(["--out", str(folder), "--tokenizer", str(tokenizer), *arguments])


def generate(folder):
    llm = LLM(str(folder), dtype="float32", threads=1)
    return llm.generate(["abc"], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))[0].token_ids


@pytest.mark.parametrize("like", PRESETS)
def test_every_preset_can_be_served(tmp_path, tiny_llama, like, capsys):
    assert make(tmp_path / "model", tiny_llama, "--like", like, *SMALL) == 0
    assert "deepseek-serve --model" in capsys.readouterr().out
    assert len(generate(tmp_path / "model")) == 8


@pytest.mark.parametrize("like", [like for like in PRESETS if like not in UNKNOWN_TO_TRANSFORMERS])
def test_transformers_reads_the_config_and_the_tokenizer(tmp_path, tiny_llama, like):
    make(tmp_path / "model", tiny_llama, "--like", like, *SMALL)
    assert AutoConfig.from_pretrained(tmp_path / "model").hidden_size == 64
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode("Grüße")) == "Grüße"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|bos|>[user]hi"


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path, tiny_llama):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        make(tmp_path / name, tiny_llama, "--like", "v3", *SMALL, "--seed", seed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_fp8_weights_have_factors_and_can_be_served(tmp_path, tiny_llama):
    assert make(tmp_path / "model", tiny_llama, "--like", "v3", *SMALL, "--fp8") == 0
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        down = file.get_tensor("model.layers.1.self_attn.kv_a_proj_with_mqa.weight")
        bias = file.get_tensor("model.layers.1.mlp.gate.e_score_correction_bias")
    assert "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv" in names
    assert not any("lm_head.weight_scale" in name or "gate.weight_scale" in name for name in names)
    assert str(down.dtype) == "torch.float8_e4m3fn"
    assert bias.abs().min() > 0
    assert len(generate(tmp_path / "model")) == 8


def test_sizes_and_settings_go_into_the_config(tmp_path, tiny_llama):
    make(
        tmp_path / "m", tiny_llama, "--like", "v3.2", *SMALL, "--experts", "8", "--heads", "2", "--set", "index_topk=5"
    )
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["n_routed_experts"], config["num_key_value_heads"], config["index_topk"]) == (8, 2, 5)


def test_flags_of_dynamic_moe_go_into_its_config(tmp_path, tiny_llama):
    heads = ["--labels", "good,bad", "--reasoning-head"]
    sparse = ["--attention-types", "full,local", "--local-window", "9", "--sparse-random", "0"]
    sizes = ["--layers", "3", "--experts", "4", "--experts-per-token", "3", "--compression-ratio", "0"]
    assert make(tmp_path / "m", tiny_llama, "--like", "dynamic-moe", *sizes, *sparse, *heads) == 0
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["attention_types"] == ["full", "local", "full"]
    assert (config["local_window"], config["sparse_num_random_blocks"]) == (9, 0)
    assert (config["moe_num_experts"], config["moe_top_k"], config["memory_compression_ratio"]) == (4, 3, None)
    assert config["task_heads"] == {"classification": {"labels": ["good", "bad"]}, "reasoning": {}}


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--attention-types", "full,all", "'all' is not one of full, local, block_sparse"),
        ("--labels", "good,good", "not a list of different names"),
        ("--sparse-random", "-1", "not a whole number from 0"),
        ("--modalities", "0", "not a positive whole number"),
    ],
)
def test_a_flag_of_dynamic_moe_says_what_is_valid(tmp_path, tiny_llama, capsys, flag, value, message):
    with pytest.raises(SystemExit):
        make(tmp_path / "m", tiny_llama, "--like", "dynamic-moe", f"{flag}={value}")
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--like", "llm-7b", "--experts", "4"], "--experts is not for --like llm-7b"),
        (["--like", "v3", "--local-window", "4"], "--local-window is not for --like v3; it is for dynamic-moe alone"),
        (["--like", "v3", "--reasoning-head"], "--reasoning-head is not for --like v3"),
        (["--like", "dynamic-moe", "--kv-lora-rank", "4"], "--kv-lora-rank is not for --like dynamic-moe"),
        (["--like", "dynamic-moe", "--intermediate", "4"], "--intermediate is not for --like dynamic-moe"),
        (["--like", "dynamic-moe", "--attention-types", "full,full,full"], "3 types for 2 layers"),
        (["--like", "dynamic-moe", "--compression-ratio", "0.001"], "memory_compression_ratio"),
        (["--like", "v3", "--set", "index_topk"], "expected KEY=JSON"),
        (["--like", "v3", "--experts", "6"], "not a multiple of n_group"),
        (["--like", "v3", "--set", 'hidden_act="gelu"'], "only 'silu'"),
    ],
)
def test_what_cannot_be_made_is_named(tmp_path, tiny_llama, capsys, arguments, message):
    assert make(tmp_path / "model", tiny_llama, *SMALL, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_weights_that_are_there_are_not_overwritten(tmp_path, tiny_llama, capsys):
    make(tmp_path / "model", tiny_llama, "--like", "v2", *SMALL)
    assert make(tmp_path / "model", tiny_llama, "--like", "v3", *SMALL) == 2
    assert "holds something already" in capsys.readouterr().err

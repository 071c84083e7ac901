"""Hugging Face folders: what is missing, misshapen, left over, damaged or not served here is named in a ModelError."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from server import make_checkpoint
from tests import tiny
from tests.engine.running import generate, greedy_params, load, make_prompt

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be spoiled."""
    return shutil.copytree(tiny_llama, tmp_path / "checkpoint")


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    return str(caught.value)


def test_missing_misshapen_and_unexpected_tensors_are_named_together(folder):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(64, 65)
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)

    edit_weights(folder, spoil)
    message = refusal(folder)
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "misshapen: model.layers.0.self_attn.q_proj.weight is [64, 65], expected [64, 64]" in message
    assert "unexpected: model.layers.9.mlp.up_proj.weight" in message


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.2.input_layernorm.weight"],
)
def test_a_missing_tensor_is_named_wherever_it_stands(folder, name):
    edit_weights(folder, lambda tensors: tensors.pop(name))
    assert refusal(folder).endswith(f"missing: {name}")


def test_of_many_names_the_first_are_listed_and_the_others_counted(folder):
    edit_weights(folder, lambda tensors: tensors.update({f"extra.{i:02}": torch.zeros(1) for i in range(25)}))
    message = refusal(folder)
    assert "extra.09 and 15 more" in message
    assert "extra.10" not in message


def test_buffers_of_old_checkpoints_are_no_fault(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    expected = generate(load(folder), [make_prompt(9)], greedy_params(4))
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(8)}))
    assert generate(load(folder), [make_prompt(9)], greedy_params(4)) == expected


def test_a_stored_copy_of_a_tied_head_is_no_fault(make_llama, tmp_path):
    tied = make_llama(tie_word_embeddings=True)
    folder = shutil.copytree(tied, tmp_path / "tied")
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": torch.full((258, 64), float("nan"))}))
    results = [generate(load(path), [make_prompt(5)], greedy_params(8)) for path in (folder, tied)]
    assert results[0] == results[1]


def test_half_precision_weights_are_computed_in_the_dtype_asked_for(tmp_path):
    folder = tiny.write_llama(tmp_path / "half", dtype=torch.bfloat16)
    assert load_file(folder / WEIGHTS)["model.norm.weight"].dtype is torch.bfloat16
    (result,) = generate(load(folder), [make_prompt(9)], greedy_params(32))
    assert result.token_ids == tiny.greedy(tiny.reference(folder), make_prompt(9), 32)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_reason(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    message = refusal(folder)
    assert "has no .safetensors files" in message
    assert f"{name} is a pickle, which could run code" in message


def test_a_folder_without_weights_is_refused(folder):
    (folder / WEIGHTS).unlink()
    assert refusal(folder).endswith("has no .safetensors files")


def test_shards_that_the_index_names_and_that_are_not_there_are_named(folder):
    index = {"weight_map": {"a": WEIGHTS, "b": "model-00002-of-00003.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks shards that its index names: model-00002-of-00003.safetensors" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, -1])
def test_damaged_safetensors_are_refused(folder, keep):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:keep])
    assert f"{WEIGHTS} cannot be read" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "reason"), [("{", "cannot be read"), ("[1]", "is not a JSON object"), ("\udcff", "cannot be read")]
)
def test_a_json_file_that_cannot_be_read_is_named(folder, name, content, reason):
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    message = refusal(folder)
    assert name in message
    assert reason in message


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    assert refusal(folder).endswith("config.json is missing")


def test_a_missing_generation_config_is_no_fault(folder):
    expected = generate(load(folder), [make_prompt(9)], greedy_params(4))
    (folder / "generation_config.json").unlink()
    assert generate(load(folder), [make_prompt(9)], greedy_params(4)) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM is not supported", "LlamaForCausalLM"]),
        ({"architectures": None}, ["(none named)", "LlamaForCausalLM"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "silu"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quanti"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads (4)", "num_key_value_heads (3)"]),
        ({"vocab_size": None}, ["config.json lacks 'vocab_size'"]),
        ({"num_hidden_layers": None}, ["config.json lacks 'num_hidden_layers'"]),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, ["'longrope' is not supported", "yarn"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["'linear' lacks 'factor'"]),
        ({"hidden_size": "64"}, ["hidden_size"]),
        ({"num_hidden_layers": 3.5}, ["num_hidden_layers"]),
        ({"rope_parameters": "linear"}, ["rope_parameters"]),
    ],
    ids=str,
)
def test_a_config_that_is_not_served_is_refused_with_what_would_be(folder, changes, words):
    edit_config(folder, changes)
    message = refusal(folder)
    for word in words:
        assert word in message


PEAK = """
import sys
from engine.config import EngineConfig
from engine.engine import Engine

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def load(model):
    Engine.load(EngineConfig(model=model, dtype="bfloat16", device="cpu", num_kv_blocks=4, max_seq_len=64, threads=1))

load(sys.argv[1])  # what libraries need, once, is not the model's
before = peak()
load(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_load_needs_the_model_s_memory_once(tmp_path, tiny_llama):
    """Neither the mapped file nor what conversion leaves behind may stand beside the model."""
    small = ["--layers", "7", "--hidden", "1024", "--intermediate", "4096", "--moe-intermediate", "1024"]
    arguments = ["--like", "v2-lite", "--experts", "8", "--tokenizer", str(tiny_llama), *small]
    assert make_checkpoint.main(["--out", str(tmp_path / "model"), *arguments]) == 0
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 300e6
    command = [sys.executable, "-c", PEAK, str(tiny_llama), str(tmp_path / "model")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < 1.3 * size


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../b"}}']
)
def test_an_index_that_is_none_is_refused(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"weight_map|outside the folder|lacks shards"):
        load(folder)


def test_a_config_nested_without_end_is_refused(folder):
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load(folder)

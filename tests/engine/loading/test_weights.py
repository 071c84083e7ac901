"""The account of a checkpoint's tensors: the missing, misshapen and unused are named in a ModelError."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from engine.loading import weights as weights_module
from engine.loading.safetensors_source import SafetensorsSource
from engine.models.int8_scheme import Int8Scheme
from engine.models.layers import Builder
from tests.support import checkpoints, tiny
from tests.support.checkpoints import edit_weights, refusal
from tests.support.int8 import make_int8
from tests.support.running import generate, greedy_params, load, make_prompt


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


def test_a_refusal_names_the_folder_and_a_shard(tiny_llama, tmp_path):
    tiny.reference(tiny_llama).save_pretrained(tmp_path, max_shard_size="50KB")
    checkpoints.edit_config(tmp_path, {"vocab_size": 500})
    message = refusal(tmp_path)
    assert message.startswith(f"the tensors of {tmp_path} do not fit its config; misshapen: lm_head.weight is [")
    shards = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert f"expected [500, 64] (in {shards['lm_head.weight']})" in message


@pytest.mark.parametrize("part", ["weight_packed", "qweight", "weight_scale"])
def test_a_quantised_layer_without_a_quantization_config_is_named(folder, part):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"model.layers.1.mlp.up_proj.{part}"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    edit_weights(folder, spoil)
    expected = f"no quantization_config in config.json says how model.layers.1.mlp.up_proj.{part} is to be read"
    assert expected in refusal(folder)


def test_what_is_wrong_with_more_than_a_shape_is_unusable(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int64)}))
    assert f"; unusable: {name} is stored as int64" in refusal(folder)


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


def test_names_that_nobody_can_read_are_shown_so_that_one_can(folder):
    edit_weights(folder, lambda tensors: tensors.update({"": torch.ones(1), "x" * 100_000: torch.ones(1)}))
    message = refusal(folder)
    assert "unexpected: '', xxx" in message
    assert len(message) < 1000


def test_buffers_of_old_checkpoints_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    expected = generate(load(folder), [make_prompt(9)], greedy_params(4))
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(8)}))
    assert generate(load(folder), [make_prompt(9)], greedy_params(4)) == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_floats_are_refused(folder, dtype):
    name = "model.layers.0.mlp.down_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    assert f"{name} is stored as {str(dtype).removeprefix('torch.')}" in refusal(folder)


@pytest.fixture(scope="module")
def int8(tiny_llama, tmp_path_factory):
    """An int8 checkpoint with a static group and a group of weights only."""
    folder = make_int8(tiny_llama, tmp_path_factory.mktemp("int8") / "static", "w8")
    scheme = Int8Scheme((("static", (r"re:.*\.up_proj$", r"re:.*\.gate_proj$")), ("float", ("Linear",))), ("lm_head",))
    checkpoints.edit_config(folder, {"quantization_config": scheme.to_config()})

    def add_grids(tensors):
        for name in [name for name in tensors if re.search(r"(up|gate)_proj.weight$", name)]:
            layer = name.removesuffix(".weight")
            tensors[f"{layer}.input_scale"] = torch.ones(1)
            tensors[f"{layer}.input_zero_point"] = torch.zeros(1, dtype=torch.int8)

    edit_weights(folder, add_grids)
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"model.layers.0.mlp.down_proj.weight_scale": None}, "missing: model.layers.0.mlp.down_proj.weight_scale"),
        ({"model.layers.0.mlp.down_proj.weight_scale": torch.ones(3)}, "weight_scale is [3], expected [64, 1]"),
        ({"model.layers.0.mlp.up_proj.input_scale": torch.zeros(1)}, "input_scale and input_zero_point are 0.0"),
        ({"model.layers.0.mlp.up_proj.input_scale": None}, "missing: model.layers.0.mlp.up_proj.input_scale"),
        ({"lm_head.weight": torch.ones(258, 64, dtype=torch.int8), "lm_head.weight_scale": torch.ones(258, 1)},
         "lm_head.weight is int8, but in no group"),
    ],
)  # fmt: skip
def test_damaged_int8_checkpoints_are_refused_by_tensor(int8, tmp_path, damage, message):
    load(int8, num_kv_blocks=16)
    damaged = shutil.copytree(int8, tmp_path / "damaged")
    tensors = checkpoints.read_weights(int8) | damage
    checkpoints.write_weights(damaged, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    assert message in refusal(damaged, num_kv_blocks=16)


def test_int8_that_is_stacked_with_floats_is_rounded_once(tmp_path):
    values, scale = torch.randint(-127, 128, (4, 64), dtype=torch.int8), torch.rand(4, 1) + 0.5
    tensors = {"a.weight": values, "a.weight_scale": scale, "b.weight": torch.randn(4, 64)}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = weights_module.Weights(
        SafetensorsSource(tmp_path), torch.device("cpu"), torch.float32, fp8_block=(128, 128), progress=False,
        int8=Int8Scheme((("dynamic", ("a",)),)),
    )  # fmt: skip
    stacked, _ = Builder(None, weights, None).stacked({"a": 4, "b": 4}, 64)
    assert torch.equal(stacked, torch.cat([values * scale, tensors["b.weight"]]))


def test_a_log_without_a_terminal_is_told_how_far_it_is(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(weights_module, "_TELL_EVERY", -1.0)
    caplog.set_level("INFO", weights_module.__name__)
    save_file({name: torch.zeros(1) for name in "abcd"}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    weights = weights_module.Weights(source, torch.device("cpu"), torch.float32, fp8_block=(128, 128), progress=False)
    for name in "abcd":
        weights.take(name, (1,))
    assert caplog.messages == [f"loading weights: {percent}%" for percent in (25, 50, 75, 100)]

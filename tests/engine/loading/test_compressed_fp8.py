"""FP8 checkpoints of compressed-tensors: the same model as the one that compressed-tensors itself decompresses."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

from engine.models.fp8_scheme import FP8Scheme
from tests.support import checkpoints
from tests.support.running import load, make_prompt, prompt_logits, relative_error

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}
EXPERTS = {"hidden_size": 128, "moe_intermediate_size": 96, "intermediate_size": 256}
KEPT = ("embed_tokens", "lm_head", "mlp.gate.", "norm")
SCALES = {  # of a weight, by strategy: how many in each dimension
    "channel": lambda rows, columns: (rows, 1),
    "tensor": lambda rows, columns: (1,),
    "block": lambda rows, columns: (-(-rows // 128), -(-columns // 128)),
}
STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
DYNAMIC = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def config(strategy, inputs=None):
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False}
    if strategy == "block":
        weights["block_structure"] = [128, 128]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    method = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return {**method, "ignore": ["lm_head", r"re:.*mlp\.gate$"], "config_groups": {"group_0": group}}


def write(folder, target, twin, strategy, inputs=None):
    """Write a checkpoint in FP8, and the twin as compressed-tensors decompresses it."""
    args = QuantizationArgs(**config(strategy)["config_groups"]["group_0"]["weights"])
    stored, values = {}, {}
    for name, weight in checkpoints.read_weights(folder).items():
        if weight.dim() != 2 or any(part in name for part in KEPT):
            stored[name] = values[name] = weight
            continue
        size = SCALES[strategy](*weight.shape)
        scale = weight.abs().max() / 448 * (1 + torch.rand(size, generator=torch.Generator().manual_seed(len(stored))))
        stored[name] = quantize(weight, scale, None, args, dtype=torch.float8_e4m3fn).contiguous()
        values[name] = dequantize(stored[name], scale, None, args).contiguous()
        stored[f"{name}_scale"] = scale
        if inputs is STATIC:
            stored[f"{name.removesuffix('weight')}input_scale"] = torch.tensor(0.1)
    checkpoints.write_weights(checkpoints.copy(folder, twin), values)
    copy = checkpoints.copy(folder, target, quantization_config=config(strategy, inputs))
    checkpoints.write_weights(copy, stored)


def logits(path, **options):
    return prompt_logits(load(path, **options), make_prompt(30), 8)


@pytest.mark.parametrize("inputs", [None, STATIC, DYNAMIC], ids=["weights alone", "static", "dynamic"])
@pytest.mark.parametrize("strategy", SCALES)
def test_layers_give_what_the_twin_gives(make_llama, tmp_path, caplog, strategy, inputs):
    write(make_llama(**SIZES), tmp_path / "fp8", tmp_path / "twin", strategy, inputs)
    expected = logits(tmp_path / "twin")
    assert relative_error(logits(tmp_path / "fp8", quantization="none"), expected) <= 1e-5
    assert relative_error(logits(tmp_path / "fp8"), expected) <= 1e-5
    assert "expanded" not in caplog.text


@pytest.mark.parametrize("strategy", ["channel", "block"])
def test_experts_and_latents_are_read_too(make_deepseek, tmp_path, strategy):
    write(make_deepseek("v3", **EXPERTS), tmp_path / "fp8", tmp_path / "twin", strategy)
    assert relative_error(logits(tmp_path / "fp8"), logits(tmp_path / "twin")) <= 1e-5


def test_a_layer_of_no_group_and_scales_that_do_not_fit_are_named(make_llama, tmp_path):
    write(make_llama(**SIZES), tmp_path / "fp8", tmp_path / "twin", "channel")
    changed = config("channel") | {"ignore": ["lm_head", "model.layers.1.mlp.up_proj"]}
    checkpoints.edit_config(tmp_path / "fp8", {"quantization_config": changed})
    assert "layers.1.mlp.up_proj.weight is FP8, but in no group" in checkpoints.refusal(tmp_path / "fp8")
    checkpoints.edit_config(tmp_path / "fp8", {"quantization_config": config("block")})
    assert "up_proj.weight_scale is [256, 1], expected [2, 1]" in checkpoints.refusal(tmp_path / "fp8")


@pytest.mark.parametrize(
    ("weights", "inputs", "message"),
    [
        ({"num_bits": 4}, None, "weights.num_bits is 4; supported is 8"),
        ({"symmetric": False}, None, "weights.symmetric is False; supported is True"),
        ({"strategy": "group"}, None, "weights.strategy is 'group'; supported are 'channel', 'tensor' and 'block'"),
        ({"strategy": ["channel"]}, None, "weights.strategy is ['channel']; supported are"),
        ({"strategy": "block"}, None, "weights.block_structure is None; expected two positive whole numbers"),
        ({"strategy": "block", "block_structure": [0, 1]}, None, "weights.block_structure is [0, 1]; expected two"),
        ({}, {"type": "int"}, "input_activations is {'type': 'int'}; supported are floats, or none"),
    ],
    ids=str,
)
def test_other_schemes_are_refused_by_name(make_llama, tmp_path, weights, inputs, message):
    wrong = config("channel", inputs)
    wrong["config_groups"]["group_0"]["weights"] |= weights
    folder = checkpoints.copy(make_llama(), tmp_path / "fp8", quantization_config=wrong)
    assert f"quantization_config.config_groups.group_0.{message}" in checkpoints.refusal(folder)


def test_a_scale_of_all_rows_and_columns_is_one_block_of_that_size():
    scheme = FP8Scheme((((1, -1), ("a",)), ((-1, -1), ("Linear",))), ("b",))
    assert [scheme.block_of(name, (4, 6)) for name in "abc"] == [(1, 6), None, (4, 6)]

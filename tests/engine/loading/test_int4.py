"""Checkpoints in 4 bits: each layout gives what its dequantised twin gives, and what does not fit is named."""

import pytest
import torch

from engine.config import EngineConfig
from engine.loading import int4
from engine.loading.footprint import Estimate
from engine.loading.resolve import resolve_model
from engine.resolve import resolve
from kernels.block_weight import BlockWeight
from kernels.linear_int8 import Input
from tests.support import checkpoints
from tests.support.int4 import awq, compressed, dequantize, gptq, quantize, write
from tests.support.running import load, make_prompt, prompt_logits, relative_error

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}


def compressed_config(group, *, symmetric, inputs=None, actorder=None, **extra):
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "channel" if group == -1 else "group"}
    weights |= {"group_size": group, "dynamic": False, "actorder": actorder}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    return {**config, "config_groups": {"group_0": scheme}, **extra}


def awq_config(group, **extra):
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm", **extra}


def gptq_config(group, **extra):
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False, **extra}


def estimated_bytes(folder):
    config = resolve(EngineConfig(model=folder, dtype="float32"), resolve_model(folder))
    tensors = config.source.open_tensors(config.model)
    return Estimate(config.model, tensors, config.ops, config.dtype).footprint("auto").weights


LAYOUTS = {
    **{
        f"compressed-tensors {group} {'symmetric' if symmetric else 'zeros'}": (
            compressed_config(group, symmetric=symmetric), group, compressed, {"symmetric": symmetric}
        )
        for group in (32, 64, 128, -1)
        for symmetric in (True, False)
    },
    "awq 32": (awq_config(32), 32, awq, {}),
    "awq 128": (awq_config(128), 128, awq, {}),
    "gptq 64": (gptq_config(64), 64, gptq, {}),
    "gptq all": (gptq_config(-1), -1, gptq, {}),
    "gptq v2 128": (gptq_config(128, checkpoint_format="gptq_v2"), 128, gptq, {"v2": True}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_expanded_layers_give_what_the_twin_gives(make_llama, tmp_path, layout):
    config, group, pack, options = layout
    write(make_llama(**SIZES), tmp_path / "int4", tmp_path / "twin", config, group, pack, **options)
    engines = load(tmp_path / "int4", quantization="none"), load(tmp_path / "twin")
    logits = [prompt_logits(engine, make_prompt(30), 8) for engine in engines]
    assert relative_error(*logits) <= 1e-5


@pytest.mark.parametrize(
    ("config", "pack", "options"),
    [
        (gptq_config(32, desc_act=True), gptq, {}),
        (compressed_config(32, symmetric=True, actorder="group"), compressed, {"symmetric": True}),
        (compressed_config(32, symmetric=False, actorder="group"), compressed, {"symmetric": False}),
    ],
    ids=["gptq", "compressed-tensors symmetric", "compressed-tensors"],
)
def test_layers_in_act_order_are_expanded(make_llama, tmp_path, caplog, config, pack, options):
    write(make_llama(**SIZES), tmp_path / "int4", tmp_path / "twin", config, 32, pack, shuffled=True, **options)
    engines = load(tmp_path / "int4"), load(tmp_path / "twin")
    logits = [prompt_logits(engine, make_prompt(30), 8) for engine in engines]
    assert relative_error(*logits) <= 1e-5
    assert "is expanded: the inputs of a group are not neighbours (act-order)" in caplog.text
    assert estimated_bytes(tmp_path / "int4") == estimated_bytes(tmp_path / "twin")


def test_experts_are_read_too(make_deepseek, tmp_path):
    sizes = {"hidden_size": 128, "moe_intermediate_size": 64, "intermediate_size": 64, "kv_lora_rank": 32}
    sizes |= {"q_lora_rank": 32, "v_head_dim": 32}
    config = compressed_config(32, symmetric=True)
    write(make_deepseek("v3", **sizes), tmp_path / "int4", tmp_path / "twin", config, 32, compressed, symmetric=True)
    engines = load(tmp_path / "int4", quantization="none"), load(tmp_path / "twin")
    logits = [prompt_logits(engine, make_prompt(30), 8) for engine in engines]
    assert relative_error(*logits) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits is 3; supported is 4"),
        ({"group_size": 48}, "group_size is 48; supported are 32, 64"),
        ({"version": "gemv"}, "version in quantization_config is 'gemv'"),
        ({"zero_point": False}, "zero_point is False; supported is True"),
        (
            {"quant_method": "gptq", "checkpoint_format": "marlin"},
            "checkpoint_format in quantization_config is 'marlin'",
        ),
        ({"quant_method": "aqlm"}, "quant_method in quantization_config is 'aqlm'"),
        ({"group_size": 64}, "scales is [1, 64], expected [2, 64]"),
    ],
)
def test_settings_that_are_not_supported_are_named(make_llama, tmp_path, changes, message):
    write(make_llama(**SIZES), tmp_path / "int4", tmp_path / "twin", awq_config(128), 128, awq)
    checkpoints.edit_config(tmp_path / "int4", {"quantization_config": awq_config(128) | changes})
    assert message in checkpoints.refusal(tmp_path / "int4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ignore": ["lm_head", "re:.*up_proj"]}, "0.mlp.up_proj.weight_packed is in no group of quantization_config"),
        ({"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 3, "type": "int"}}}},
         "weights.num_bits is 3; supported are 4, and 8"),
        ({"config_groups": {"group_0": {"targets": ["Linear"], "weights": 4}}}, "weights is 4; expected an object"),
        (compressed_config(32, symmetric=True, inputs={"num_bits": 8, "type": "int", "dynamic": False}),
         "input_activations is {'num_bits': 8"),
    ],
)  # fmt: skip
def test_groups_that_are_not_supported_are_named(make_llama, tmp_path, changes, message):
    config = compressed_config(32, symmetric=True)
    write(make_llama(**SIZES), tmp_path / "int4", tmp_path / "twin", config, 32, compressed, symmetric=True)
    checkpoints.edit_config(tmp_path / "int4", {"quantization_config": config | changes})
    assert message in checkpoints.refusal(tmp_path / "int4")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"qzeros": None}, "missing: model.layers.0.mlp.up_proj.qzeros"),
        ({"scales": torch.ones(3, 256)}, "up_proj.scales is [3, 256], expected [2, 256]"),
        ({"g_idx": torch.arange(128)}, "up_proj.g_idx has numbers beyond 0 to 1"),
        ({"bias": torch.ones(256)}, "up_proj.bias is not 0, and the model has none"),
        ({"qweight": torch.ones(16, 256, dtype=torch.int16)}, "up_proj.qweight is stored as int16, expected int32"),
        ({"qweight": torch.ones(16, 256, dtype=torch.uint32)}, "up_proj.qweight is stored as uint32, expected int32"),
        ({"qzeros": torch.ones(2, 32, dtype=torch.bool)}, "up_proj.qzeros is stored as bool, expected int32"),
        ({"scales": torch.ones(2, 256, dtype=torch.uint8)}, "up_proj.scales is stored as uint8, expected float32"),
        ({"scales": torch.full((2, 256), torch.nan)}, "up_proj.scales has scales that are infinite or no numbers"),
        ({"g_idx": torch.zeros(128)}, "up_proj.g_idx is stored as float32, expected int32 or int64"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_named(make_llama, tmp_path, damage, message):
    write(make_llama(**SIZES), tmp_path / "int4", tmp_path / "twin", gptq_config(64), 64, gptq)
    damaged = {f"model.layers.0.mlp.up_proj.{part}": tensor for part, tensor in damage.items()}
    tensors = checkpoints.read_weights(tmp_path / "int4") | damaged
    checkpoints.write_weights(tmp_path / "int4", {name: x for name, x in tensors.items() if x is not None})
    assert message in checkpoints.refusal(tmp_path / "int4")


def test_a_bias_of_zeros_that_gptq_wrote_is_ignored(make_llama, tmp_path):
    write(make_llama(**SIZES), tmp_path / "int4", tmp_path / "twin", gptq_config(64), 64, gptq)
    biases = {"model.layers.0.mlp.up_proj.bias": torch.zeros(256)}
    checkpoints.edit_weights(tmp_path / "int4", lambda tensors: tensors.update(biases))
    engines = load(tmp_path / "int4", quantization="none"), load(tmp_path / "twin")
    assert relative_error(*(prompt_logits(engine, make_prompt(30), 8) for engine in engines)) <= 1e-5


@pytest.mark.parametrize(("group", "name"), [(32, "q4_0"), (64, "int4_64"), (128, "int4_128"), (256, "int4_128")])
@pytest.mark.parametrize("in_size", [256, 512])
def test_groups_become_blocks(group, name, in_size):
    generator = torch.Generator().manual_seed(0)
    codes, scales, zeros = quantize(torch.randn(6, in_size, generator=generator).numpy(), group, symmetric=True)
    tensors = torch.from_numpy(codes).to(torch.uint8), torch.from_numpy(scales)
    weight = int4.to_blocks(*tensors, None, group, Input.DYNAMIC)
    assert isinstance(weight, BlockWeight)
    assert weight.format.name == name
    assert torch.equal(weight.dequantize(torch.float32), dequantize(codes, scales, zeros))


def test_one_group_for_all_inputs_is_padded():
    generator = torch.Generator().manual_seed(0)
    codes, scales, zeros = quantize(torch.randn(6, 200, generator=generator).numpy(), -1, symmetric=False)
    tensors = (torch.from_numpy(x) for x in (codes.astype("uint8"), scales, zeros))
    weight = int4.to_blocks(*tensors, -1, Input.DYNAMIC)
    assert isinstance(weight, BlockWeight)
    assert torch.equal(weight.dequantize(torch.float32), dequantize(codes, scales, zeros))


@pytest.mark.parametrize("scale", [1e6, 1e-9], ids=["too large", "too small"])
def test_scales_that_fp16_does_not_hold_expand_the_weight(caplog, scale):
    codes = torch.arange(64, dtype=torch.uint8).view(2, 32) % 16
    weight = int4.to_blocks(codes, torch.full((2, 1), scale), None, 32, Input.DYNAMIC)
    assert isinstance(weight, torch.Tensor)
    torch.testing.assert_close(weight, (codes.float() - 8) * scale)
    assert "does not hold its scales" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"weight_packed": torch.ones(256, 16, dtype=torch.int64)}, "weight_packed is stored as int64, expected int32"),
        ({"weight_zero_point": torch.ones(32, 4)}, "weight_zero_point is stored as float32, expected int32"),
        ({"weight_scale": torch.full((256, 4), torch.inf)}, "weight_scale has scales that are infinite or no numbers"),
        ({"weight_shape": torch.tensor([256, 127])}, "weight_shape is [256, 127], expected [256, 128]"),
    ],
    ids=["codes", "zeros", "scales", "shape"],
)
def test_parts_of_compressed_tensors_that_do_not_fit_are_named(make_llama, tmp_path, damage, message):
    config = compressed_config(32, symmetric=False)
    write(make_llama(**SIZES), tmp_path / "int4", tmp_path / "twin", config, 32, compressed, symmetric=False)
    damaged = {f"model.layers.0.mlp.up_proj.{part}": tensor for part, tensor in damage.items()}
    checkpoints.edit_weights(tmp_path / "int4", lambda tensors: tensors.update(damaged))
    assert message in checkpoints.refusal(tmp_path / "int4")

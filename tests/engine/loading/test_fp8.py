"""FP8 checkpoints as DeepSeek-V3's: the same model as their dequantized twin."""

import pytest
import torch

from engine.loading.fp8 import dequantize, quantize, to_blocks
from tests.support import checkpoints, tiny_deepseek
from tests.support.running import generate, greedy_params, load, make_prompt, prompt_logits, relative_error


@pytest.fixture
def fp8(make_deepseek, tmp_path):
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin")
    return tmp_path / "fp8"


@pytest.mark.parametrize("sizes", [{"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 256}, {}])
def test_fp8_weights_give_what_their_dequantized_twin_gives(make_deepseek, tmp_path, sizes):
    tiny_deepseek.quantize_fp8(make_deepseek("v3", **sizes), tmp_path / "fp8", tmp_path / "twin")
    logits = [prompt_logits(load(tmp_path / name), make_prompt(30), 16) for name in ("fp8", "twin")]
    assert relative_error(*logits) <= 1e-5  # the same weights; products may sum in another order


def test_blocks_of_another_size_and_scales_that_do_not_fit(make_deepseek, tmp_path):
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin", block=(48, 20))
    results = [generate(load(tmp_path / name), [make_prompt(30)], greedy_params(16)) for name in ("fp8", "twin")]
    assert results[0] == results[1]
    quantization = checkpoints.read_config(tmp_path / "fp8")["quantization_config"] | {"weight_block_size": [128, 128]}
    checkpoints.edit_config(tmp_path / "fp8", {"quantization_config": quantization})
    message = checkpoints.refusal(tmp_path / "fp8")
    assert "misshapen: " in message
    assert "down_proj.weight_scale_inv is [2, 5], expected [1, 1]" in message


def test_weights_without_their_scales_are_refused_by_name(fp8):
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv"
    checkpoints.edit_weights(fp8, lambda tensors: tensors.pop(name))
    assert checkpoints.refusal(fp8).endswith(f"missing: {name}")


def test_scales_of_one_byte_are_powers_of_two(fp8):
    def round_scales(tensors, dtype):
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            exponents = torch.log2(tensors[name].float()).ceil()
            tensors[name] = (exponents + 127).to(torch.uint8) if dtype == torch.uint8 else torch.exp2(exponents)

    checkpoints.copy(fp8, fp8.parent / "bytes")
    checkpoints.write_weights(fp8.parent / "bytes", checkpoints.read_weights(fp8))
    checkpoints.edit_weights(fp8.parent / "bytes", lambda tensors: round_scales(tensors, torch.uint8))
    checkpoints.edit_weights(fp8, lambda tensors: round_scales(tensors, torch.float32))
    floats, bytes_ = (prompt_logits(load(folder), make_prompt(30), 8) for folder in (fp8, fp8.parent / "bytes"))
    assert torch.equal(torch.as_tensor(floats), torch.as_tensor(bytes_))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scales: scales.to(torch.int32), "is stored as int32, expected float32 or float16 or"),
        (lambda scales: scales * torch.inf, "has scales that are infinite or no numbers"),
        (lambda scales: torch.full(scales.shape, 255, dtype=torch.uint8), "has scales that are infinite or no numbers"),
    ],
    ids=["integers", "infinite", "no number"],
)
def test_scales_that_cannot_be_used_are_named(fp8, change, message):
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv"
    checkpoints.edit_weights(fp8, lambda tensors: tensors.update({name: change(tensors[name])}))
    assert f"{name} {message}" in checkpoints.refusal(fp8)


def test_an_fp8_mtp_layer_is_ignored(fp8):
    expected = generate(load(fp8), [make_prompt(20)], greedy_params(8))

    def add_mtp(tensors):
        for name, tensor in list(tensors.items()):
            if name.startswith("model.layers.2."):
                tensors[name.replace(".2.", ".3.", 1)] = tensor.clone()

    checkpoints.edit_weights(fp8, add_mtp)
    assert generate(load(fp8), [make_prompt(20)], greedy_params(8)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize(("shape", "block"), [((200, 256), (128, 128)), ((96, 300), (128, 128)), ((5, 300), (1, 300))])
def test_blocks_have_the_same_values(shape, block, dtype):
    generator = torch.Generator().manual_seed(0)
    weight, scales = quantize(torch.randn(shape, generator=generator), block)
    scales = torch.exp2(torch.log2(scales).ceil()).to(dtype)
    blocks = to_blocks(weight, scales, block)
    assert blocks is not None
    assert blocks.format.name == "fp8_128"
    assert torch.equal(blocks.dequantize(torch.float32), dequantize(weight, scales, block))


def test_blocks_far_larger_than_the_weight_take_no_memory():
    weight, scales = quantize(torch.randn(5, 200), (5, 200))
    expected = dequantize(weight, scales, (5, 200))
    assert torch.equal(dequantize(weight, scales, (1 << 50, 1 << 50)), expected)
    assert torch.equal(to_blocks(weight, scales, (1 << 50, 1 << 50)).dequantize(torch.float32), expected)


def test_scales_of_other_columns_have_no_blocks(make_deepseek, tmp_path, caplog):
    weight, scales = quantize(torch.ones(48, 200), (48, 20))
    assert to_blocks(weight, scales, (48, 20)) is None
    assert to_blocks(weight, torch.full((1, 2), 128.0), (48, 128)) is None
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin", block=(48, 20))
    load(tmp_path / "fp8", num_kv_blocks=4)
    assert [line for line in caplog.messages if "expanded" in line] == [
        "FP8 weights whose scales are of 48 x 20 values are expanded: kernels take scales of 128 columns, below 128"
    ]


@pytest.mark.parametrize("scale_name", ["weight_scale_inv", "scale"])
def test_scales_may_be_powers_of_two_and_have_the_name_of_v4(make_deepseek, tmp_path, scale_name):
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin")
    stored = checkpoints.read_weights(tmp_path / "fp8")
    twin = checkpoints.read_weights(tmp_path / "twin")
    changed = {}
    for name, tensor in stored.items():
        if not name.endswith("_scale_inv"):
            changed[name] = tensor
            continue
        weight = name.removesuffix("_scale_inv")
        scales = torch.exp2(torch.log2(tensor).round()).to(torch.float8_e8m0fnu)
        twin[weight] = dequantize(stored[weight], scales, (128, 128))
        changed[f"{weight.removesuffix('weight')}{scale_name}"] = scales
    checkpoints.write_weights(tmp_path / "fp8", changed)
    checkpoints.write_weights(tmp_path / "twin", twin)
    logits = [prompt_logits(load(tmp_path / name), make_prompt(30), 16) for name in ("fp8", "twin")]
    assert relative_error(*logits) <= 1e-5

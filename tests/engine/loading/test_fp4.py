"""FP4 with E8M0 scales, as DeepSeek-V4 and compressed-tensors store it: the same model as its dequantised twin."""

import pytest
import torch

from engine.loading import fp4
from kernels.linear_int8 import Input
from tests.support import checkpoints
from tests.support.int4 import KEPT
from tests.support.running import load, make_prompt, prompt_logits, relative_error

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "mxfp4-pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32},
            "input_activations": None,
        }
    },
}
V4 = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two codes a byte, low nibble first; exponents + 127; and the values that they stand for."""
    groups = weight.unflatten(1, (-1, 32))
    exponents = torch.ceil(torch.log2(groups.abs().amax(2, keepdim=True) / 6))
    codes = (groups[..., None] / 2 ** exponents[..., None] - E2M1).abs().argmin(-1)
    values = (E2M1[codes] * 2**exponents).flatten(1)
    codes = codes.flatten(1).to(torch.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, (exponents[..., 0] + 127).to(torch.uint8), values


def test_codes_and_scales_become_blocks():
    packed, scales, values = quantize(torch.randn(5, 96, generator=torch.Generator().manual_seed(0)))
    weight = fp4.to_blocks(packed, scales, Input.DYNAMIC)
    assert weight.format.name == "mxfp4"
    assert torch.equal(weight.dequantize(torch.float32), values)


@pytest.mark.parametrize("is_v4", [True, False], ids=["DeepSeek-V4", "compressed-tensors"])
def test_a_checkpoint_gives_what_its_twin_gives(make_deepseek, tmp_path, is_v4):
    folder = make_deepseek("v3", kv_lora_rank=32, q_lora_rank=32, v_head_dim=24)  # rows of whole groups
    stored, twin = {}, {}
    for name, weight in checkpoints.read_weights(folder).items():
        layer = name.removesuffix(".weight")
        if weight.dim() != 2 or any(part in name for part in KEPT):
            stored[name] = twin[name] = weight
        elif is_v4:
            packed, scales, twin[name] = quantize(weight)
            stored[name], stored[f"{layer}.scale"] = packed.view(torch.int8), scales.view(torch.float8_e8m0fnu)
        else:
            stored[f"{layer}.weight_packed"], stored[f"{layer}.weight_scale"], twin[name] = quantize(weight)
    checkpoints.copy(folder, tmp_path / "fp4", quantization_config=V4 if is_v4 else COMPRESSED)
    checkpoints.write_weights(tmp_path / "fp4", {name: tensor.contiguous() for name, tensor in stored.items()})
    checkpoints.copy(folder, tmp_path / "twin")
    checkpoints.write_weights(tmp_path / "twin", twin)
    engines = load(tmp_path / "fp4", quantization="none"), load(tmp_path / "twin")
    assert relative_error(*(prompt_logits(engine, make_prompt(30), 8) for engine in engines)) <= 1e-5
    name = "model.layers.0.mlp.up_proj." + ("scale" if is_v4 else "weight_scale")
    checkpoints.edit_weights(tmp_path / "fp4", lambda tensors: tensors.pop(name))
    assert "model.layers.0.mlp.up_proj.weight" in checkpoints.refusal(tmp_path / "fp4")


def test_a_scale_that_products_cannot_take_is_refused_by_tensor(make_llama, tmp_path):
    stored, layer = {}, "model.layers.0.mlp.up_proj"
    folder = make_llama(hidden_size=64)
    for name, weight in checkpoints.read_weights(folder).items():
        if name == f"{layer}.weight":
            packed, scales, _ = quantize(weight)
            scales[5, 1] = 233
            stored[name], stored[f"{layer}.scale"] = packed.view(torch.int8), scales.view(torch.float8_e8m0fnu)
        else:
            stored[name] = weight
    checkpoints.copy(folder, tmp_path / "fp4", quantization_config=V4)
    checkpoints.write_weights(tmp_path / "fp4", stored)
    assert f"{layer}.weight has scales that are infinite, no numbers or above 2^105" in checkpoints.refusal(
        tmp_path / "fp4"
    )

"""Which tensors an int8 checkpoint holds."""

import torch

from tests.support import checkpoints, tiny_deepseek
from tests.support.int8 import make_int8, scheme_of


def test_a_checkpoint_names_its_layers_and_leaves_the_others_alone(tmp_path, make_deepseek):
    moe = make_deepseek("v3")
    folder = make_int8(moe, tmp_path / "int8", "w8a8-static")
    stored, before, scheme = checkpoints.read_weights(folder), checkpoints.read_weights(moe), scheme_of(folder)
    quantized = {
        name.removesuffix(".weight")
        for name, tensor in stored.items()
        if tensor.dtype is torch.int8 and name.endswith(".weight")
    }
    assert any(".experts.7.down_proj" in name for name in quantized)
    assert any("q_a_proj" in name for name in quantized)
    never = ("kv_b_proj", "mlp.gate.", "embed", "lm_head", "norm")
    assert not any(part in name for name in quantized for part in never)
    for name in before:
        layer = name.removesuffix(".weight")
        kind = scheme.input_kind(layer)
        assert (layer in quantized) == (kind is not None)
        assert (f"{layer}.input_scale" in stored) == (kind == "static")
        if kind is None:
            assert torch.equal(stored[name], before[name])
    names = [f"model.layers.1.mlp.experts.{e}.{p}_proj.input_scale" for e in range(8) for p in ("gate", "up")]
    assert len({float(stored[name]) for name in names if name in stored}) <= 1  # these layers read the same input


def test_fp8_scales_are_left_out(tmp_path, make_deepseek):
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin")
    folder = make_int8(tmp_path / "fp8", tmp_path / "int8", "w8")
    assert not any("scale_inv" in name for name in checkpoints.read_weights(folder))

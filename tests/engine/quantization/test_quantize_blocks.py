"""Checkpoints of 4 bits: what is written, from which models."""

import re

import pytest
import torch

from engine.loading.resolve import resolve_model
from engine.quantization import gptq
from engine.quantization.quantize import quantize
from engine.quantization.scheme_bits import Bits
from tests.engine.quantization.test_packing import unpack
from tests.support import checkpoints, tiny_deepseek
from tests.support.int8 import PROMPTS, distance
from tests.support.running import load, prompt_logits, relative_error


def make(source, folder, scheme="w4a8", bits=5.0, wide=8):
    folder.mkdir()
    quantize(resolve_model(str(source)), folder, scheme, PROMPTS, bits=Bits(bits, wide), progress=False)
    return folder


def layers_by_bits(folder):
    """The layers that are stored in so many bits, by what their tensors say."""
    stored, found = checkpoints.read_weights(folder), {}
    for name, tensor in stored.items():
        if name.endswith(".weight_packed"):
            layer = name.removesuffix(".weight_packed")
            in_size = int(stored[f"{layer}.weight_shape"][1])
            found.setdefault(tensor.shape[1] * 32 // in_size, set()).add(layer)
    return found


def dequantized(folder, target):
    """The same checkpoint in floats, computed here."""
    checkpoints.copy(folder, target, quantization_config=None)
    stored, floats = checkpoints.read_weights(folder), {}
    for name, tensor in stored.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight_packed":
            _, in_size = stored[f"{layer}.weight_shape"].tolist()
            codes_OI = unpack(tensor, tensor.shape[1] * 32 // in_size, in_size)
            floats[f"{layer}.weight"] = codes_OI * stored[f"{layer}.weight_scale"].float().repeat_interleave(32, 1)
        elif not kind.startswith("weight_"):
            floats[name] = tensor
    checkpoints.write_weights(target, floats)
    return target


def logits_of(folder, **options):
    return prompt_logits(load(folder, num_kv_blocks=64, **options), PROMPTS[0])


@pytest.fixture
def source(request, tiny_llama, make_deepseek, make_dynamic_moe):
    if request.param == "dynamic-moe":
        return make_dynamic_moe("mixed")
    return tiny_llama if request.param == "llama" else make_deepseek(request.param)


@pytest.mark.parametrize("source", ["llama", "v3", "dynamic-moe"], indirect=True)
def test_weights_are_near_the_original_ones(tmp_path, source):
    folder = make(source, tmp_path / "int4", "w4a16")
    assert 0 < distance(logits_of(dequantized(folder, tmp_path / "twin")), logits_of(source)) < 0.6


def test_a_scheme_names_what_is_stored(tmp_path, make_deepseek):
    folder = make(make_deepseek("v3"), tmp_path / "int4")
    groups = checkpoints.read_config(folder)["quantization_config"]["config_groups"]
    stored = layers_by_bits(folder)
    assert set(stored) == {4, 8}
    for group in groups.values():
        bits, targets = group["weights"]["num_bits"], group["targets"]
        patterns = [item[3:] if item.startswith("re:") else f"{re.escape(item)}$" for item in targets]
        every = {layer for layers in stored.values() for layer in layers}
        assert {layer for layer in every if any(re.match(pattern, layer) for pattern in patterns)} == stored[bits]
    assert "lm_head" in stored[8]
    never = ("kv_b_proj", "mlp.gate", "embed", "norm")
    assert not any(layer.endswith(never) for layers in stored.values() for layer in layers)


def test_wide_layers_can_stay_as_they_are(tmp_path, tiny_llama):
    folder = make(tiny_llama, tmp_path / "int4", bits=6.5, wide=16)
    assert set(layers_by_bits(folder)) == {4}
    stored, before = checkpoints.read_weights(folder), checkpoints.read_weights(tiny_llama)
    kept = [name for name in before if "proj" in name and name in stored]
    assert kept
    assert all(torch.equal(stored[name], before[name]) for name in [*kept, "lm_head.weight"])
    ignored = checkpoints.read_config(folder)["quantization_config"]["ignore"]
    assert {name.removesuffix(".weight") for name in kept} | {"lm_head"} <= set(ignored)


def test_a_tied_head_has_weights_of_its_own(tmp_path, tiny_llama):
    tied = tmp_path / "tied"
    checkpoints.copy(tiny_llama, tied, tie_word_embeddings=True)
    checkpoints.edit_weights(tied, lambda tensors: tensors.pop("lm_head.weight"))
    folder = make(tied, tmp_path / "int4", "w4a16", 8.5)
    assert checkpoints.read_config(folder)["tie_word_embeddings"] is False
    assert 0 < distance(logits_of(dequantized(folder, tmp_path / "twin")), logits_of(tied)) < 0.15


def test_experts_that_no_token_chooses_are_rounded_too(tmp_path, make_deepseek):
    source = tmp_path / "source"
    checkpoints.copy(make_deepseek("v3"), source)

    def avoid(tensors):
        for name, tensor in tensors.items():
            if name.endswith("e_score_correction_bias"):
                tensor[3] = -100

    checkpoints.edit_weights(source, avoid)
    folder = make(source, tmp_path / "int4", bits=4.5)
    before = checkpoints.read_weights(source)
    twin = checkpoints.read_weights(dequantized(folder, tmp_path / "twin"))
    for part in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.experts.3.{part}_proj.weight"
        assert relative_error(twin[name], before[name].float()) < 0.15


def test_layers_make_up_for_the_errors_of_those_before(tmp_path, make_deepseek, monkeypatch):
    """Each layer's inputs, as it is quantised, come from layers that are quantised already."""
    seen, hessian = [], gptq.hessian
    monkeypatch.setattr(gptq, "hessian", lambda inputs, size: seen.append(hessian(inputs, size)) or seen[-1])
    make(make_deepseek("v2-lite"), tmp_path / "few", bits=4.5)
    few, seen[:] = [*seen], []
    make(make_deepseek("v2-lite"), tmp_path / "many", bits=8.4)
    assert len(few) > len(seen) > 0
    assert not any(torch.equal(few[-1], other) for other in seen)


def test_fp8_weights_are_quantised(tmp_path, make_deepseek):
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin")
    folder = make(tmp_path / "fp8", tmp_path / "int4", "w4a16")
    assert not any("scale_inv" in name for name in checkpoints.read_weights(folder))
    logits = logits_of(dequantized(folder, tmp_path / "floats"))
    assert distance(logits, logits_of(tmp_path / "twin")) < 0.3


@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
def test_a_checkpoint_is_served_with_the_weights_that_were_made(tmp_path, make_deepseek, scheme):
    folder = make(make_deepseek("v3"), tmp_path / "int4", scheme)
    logits = logits_of(folder, kernels="reference")
    expected = logits_of(dequantized(folder, tmp_path / "twin"), kernels="reference")
    if scheme == "w4a16":
        assert relative_error(logits, expected) <= 1e-4
    else:
        assert 0 < distance(logits, expected) < 0.1  # the rounding of the inputs

"""Int8 models, quantised by `quantize` or at load: their logits are those of the weights that are meant."""

import pytest
import torch

from engine.models.int8_scheme import Int8Scheme
from kernels import hadamard
from kernels.linear_int8 import QuantizedWeight
from kernels.ops import Ops
from tests.support import checkpoints, tiny, tiny_deepseek
from tests.support.int8 import PROMPTS, dequantized, distance, make_int8, scheme_of
from tests.support.running import assert_batched_equals_alone, load, make_prompt, prompt_logits, relative_error

BATCH = [make_prompt(length, length) for length in (3, 17, 40, 64)]


@pytest.fixture
def source(request, tiny_llama, make_deepseek, make_dynamic_moe):
    if request.param == "dynamic-moe":
        return make_dynamic_moe("mixed")
    return tiny_llama if request.param == "llama" else make_deepseek(request.param)


def logits_of(folder, **options):
    return prompt_logits(load(folder, num_kv_blocks=64, **options), PROMPTS[0])


@pytest.mark.parametrize("source", ["llama", "v2-lite", "v3", "v32", "dynamic-moe"], indirect=True)
def test_weights_alone_give_the_logits_of_the_dequantized_checkpoint(tmp_path, source):
    folder = make_int8(source, tmp_path / "int8", "w8")
    logits = logits_of(folder)
    assert relative_error(logits, logits_of(dequantized(folder, tmp_path / "twin"))) <= 1e-4
    assert 0 < distance(logits, logits_of(source)) < 0.15


@pytest.mark.parametrize("scheme", ["w8a8-dynamic", "w8a8-static"])
@pytest.mark.parametrize("source", ["llama", "v3", "dynamic-moe"], indirect=True)
def test_quantised_inputs_stay_near_the_dequantized_checkpoint(tmp_path, source, scheme):
    engine = load(make_int8(source, tmp_path / "int8", scheme), num_kv_blocks=128)
    expected = logits_of(dequantized(tmp_path / "int8", tmp_path / "twin"))
    assert 0 < distance(prompt_logits(engine, PROMPTS[0]), expected) < 0.15
    assert_batched_equals_alone(engine, BATCH, 24)


def test_a_layer_computes_what_its_tensors_say(tmp_path, tiny_llama, monkeypatch):
    """Each layer's arithmetic in integers, from the file, inside transformers' model; but for rotations."""
    monkeypatch.setattr(hadamard, "block_size", lambda in_size: 1)
    folder = make_int8(tiny_llama, tmp_path / "int8", "w8a8-static")
    stored, scheme = checkpoints.read_weights(folder), scheme_of(folder)
    model, kinds = tiny.reference(dequantized(folder, tmp_path / "twin")), set()

    def compute(module, args, output):
        (x,), name = args, module.name
        values, scale = stored[f"{name}.weight"].double(), stored[f"{name}.weight_scale"].double()
        if f"{name}.input_scale" in stored:
            step, zero = stored[f"{name}.input_scale"].double(), stored[f"{name}.input_zero_point"].double()
        else:
            low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
            step = (high - low).double() / 255
            zero = (-low / step).round() - 128
        x_q = ((x / step).round() + zero).clamp(-128, 127)
        return ((x_q - zero) @ values.T * step * scale.T).float()

    for name, module in model.named_modules():
        kind = scheme.input_kind(name)
        if isinstance(module, torch.nn.Linear) and kind is not None:
            module.name = name
            kinds.add(kind)
            module.register_forward_hook(compute)
    assert "static" in kinds
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[0]])).logits[0]
    # A tie of rounding can go the other way.
    assert (logits_of(folder) - expected).norm() / expected.norm() < 5e-3


@pytest.mark.parametrize("source", ["llama", "v3"], indirect=True)
def test_int8_at_load_is_near_the_original_and_batched_equals_alone(source):
    engine = load(source, num_kv_blocks=128, quantization="int8")
    assert 0 < distance(prompt_logits(engine, PROMPTS[0]), logits_of(source)) < 0.15
    assert_batched_equals_alone(engine, BATCH, 24)


def test_int8_at_load_of_an_int8_checkpoint_adds_the_head_only(tmp_path, tiny_llama, monkeypatch):
    folder = make_int8(tiny_llama, tmp_path / "int8", "w8")
    projection, packed = Ops.projection, []
    monkeypatch.setattr(
        Ops, "projection", lambda ops, weight, *rest: packed.append(weight) or projection(ops, weight, *rest)
    )
    for quantization, head in (("none", torch.Tensor), ("int8", QuantizedWeight)):
        packed.clear()
        load(folder, num_kv_blocks=16, quantization=quantization)
        first, *layers = (weight for weight in packed if not (isinstance(weight, torch.Tensor) and weight.is_meta))
        assert isinstance(first, head)
        assert {type(weight) for weight in layers} == {QuantizedWeight}


def test_a_layer_with_massive_activations_is_not_static(folder, tmp_path):
    """What SmolLM2 does: a few values of one input are far beyond the others."""

    def spread(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][5] *= 3000
        tensors["model.layers.1.mlp.down_proj.weight"][:, 5] /= 3000

    checkpoints.edit_weights(folder, spread)
    scheme = scheme_of(make_int8(folder, tmp_path / "int8", "w8a8-static"))
    assert scheme.input_kind("model.layers.1.mlp.down_proj") in ("dynamic", None)


def test_stacked_layers_with_different_inputs_are_dequantized(tmp_path, tiny_llama):
    folder = make_int8(tiny_llama, tmp_path / "int8", "w8")
    scheme = Int8Scheme((("dynamic", (r"re:.*\.up_proj$",)), ("float", ("Linear",))), ("lm_head",))
    checkpoints.edit_config(folder, {"quantization_config": scheme.to_config()})
    # dynamic weights are rotated and rounded a second time before
    assert relative_error(logits_of(folder), logits_of(dequantized(folder, tmp_path / "twin"))) <= 0.03


def test_fp8_weights_are_quantised_to_int8_in_both_ways(tmp_path, make_deepseek):
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin")
    expected = logits_of(tmp_path / "twin")
    assert distance(logits_of(make_int8(tmp_path / "fp8", tmp_path / "int8", "w8")), expected) < 0.15
    assert distance(logits_of(tmp_path / "fp8", quantization="int8"), expected) < 0.15


def test_of_dynamic_moe_what_decides_or_is_small_stays_in_floats(tmp_path, make_dynamic_moe):
    folder = make_int8(make_dynamic_moe("mixed"), tmp_path / "int8", "w8a8-static")
    stored = checkpoints.read_weights(folder)
    quantized = {name.removesuffix(".weight") for name, tensor in stored.items() if tensor.dtype is torch.int8}
    floats = {name.rpartition(".")[0] for name, tensor in stored.items() if tensor.dtype is torch.float32}
    assert {"model.layers.0.mlp.router.fc1", "heads.reasoning", "model.modality_scale", "lm_head"} <= floats
    assert {"model.layers.0.mlp.experts.5.up_proj", "model.layers.2.self_attn.q_proj"} <= quantized
    assert any("compression" in name for name in quantized)
    assert all(scheme_of(folder).input_kind(layer) is not None for layer in quantized if "zero_point" not in layer)
    assert scheme_of(folder).input_kind("model.layers.0.mlp.router.fc1") is None
    load(folder)

"""Int8 checkpoints: what is written, what is read back, and that the model computed from it is the one meant."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from engine.errors import ModelError
from engine.loading.open import open_tensors
from engine.loading.resolve import resolve_model
from engine.models.int8_scheme import Int8Scheme
from engine.quantization.calibrate import Measurement, calibrate
from engine.quantization.calibration_text import builtin_text
from engine.quantization.choose import choose
from engine.quantization.quantize import quantize
from kernels.linear_int8 import Input, QuantizedWeight, StaticInput
from kernels.ops import Ops
from tests import tiny, tiny_deepseek
from tests.engine.running import generate, greedy_params, load, make_prompt, record_logits, relative_error

PROMPTS = [make_prompt(96, seed) for seed in range(3)]


def make(source, folder, scheme):
    folder.mkdir()
    quantize(resolve_model(str(source)), folder, scheme, PROMPTS, progress=False)
    return folder


def dequantized(folder, target):
    """The same checkpoint in plain numbers, by hand: int8 values times their scales."""
    shutil.copytree(folder, target)
    stored = load_file(folder / "model.safetensors")
    plain = {}
    for name, tensor in stored.items():
        if name.endswith(("_scale", "_zero_point")):
            continue
        scale = stored.get(f"{name}_scale")
        plain[name] = tensor if scale is None else tensor.float() * scale
    save_file(plain, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    return target


def prompt_logits(folder, prompt, **options):
    engine = load(folder, num_kv_blocks=64, **options)
    recorded = record_logits(engine)
    generate(engine, [prompt], greedy_params(1, prompt_logprobs=0))
    return torch.cat(recorded)


def distance(logits, expected):
    """Of half of the positions at most; a few go through other experts for the least of reasons."""
    return float(((logits - expected).norm(dim=1) / expected.norm(dim=1)).median())


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return tiny_deepseek.write(tmp_path_factory.mktemp("moe"), "v3")


@pytest.mark.parametrize("variant", ["llama", "v2-lite", "v3", "v32"])
def test_weights_alone_give_the_logits_of_the_dequantised_checkpoint(tmp_path, tiny_llama, variant):
    source = tiny_llama if variant == "llama" else tiny_deepseek.write(tmp_path / "source", variant)
    folder = make(source, tmp_path / "int8", "w8")
    twin = dequantized(folder, tmp_path / "twin")
    prompt = make_prompt(60, 7)
    logits = prompt_logits(folder, prompt)
    assert relative_error(logits, prompt_logits(twin, prompt)) <= 1e-4
    assert 0 < distance(logits, prompt_logits(source, prompt)) < 0.15


@pytest.mark.parametrize("scheme", ["w8a8-dynamic", "w8a8-static"])
@pytest.mark.parametrize("variant", ["llama", "v3"])
def test_quantised_inputs_stay_near_the_dequantised_checkpoint(tmp_path, tiny_llama, moe, variant, scheme):
    folder = make(tiny_llama if variant == "llama" else moe, tmp_path / "int8", scheme)
    twin = dequantized(folder, tmp_path / "twin")
    prompt = PROMPTS[0]
    logits, expected = prompt_logits(folder, prompt), prompt_logits(twin, prompt)
    assert 0 < distance(logits, expected) < 0.15


def test_a_static_layer_computes_what_its_tensors_say(tmp_path, tiny_llama):
    """One layer's arithmetic in whole numbers, from the file, inside transformers' model."""
    folder = make(tiny_llama, tmp_path / "int8", "w8a8-static")
    stored = load_file(folder / "model.safetensors")
    model = tiny.reference(dequantized(folder, tmp_path / "twin"))
    scheme = Int8Scheme.from_config(json.loads((folder / "config.json").read_text())["quantization_config"])
    kinds = set()

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
    prompt = PROMPTS[0]
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0]
    logits = prompt_logits(folder, prompt)
    assert (logits - expected).norm() / expected.norm() < 5e-3  # a tie of rounding can fall the other way


def test_a_checkpoint_names_its_layers_and_leaves_the_others_alone(tmp_path, moe):
    folder = make(moe, tmp_path / "int8", "w8a8-static")
    stored, before = load_file(folder / "model.safetensors"), load_file(moe / "model.safetensors")
    scheme = Int8Scheme.from_config(json.loads((folder / "config.json").read_text())["quantization_config"])
    quantized = {name.removesuffix(".weight") for name, tensor in stored.items() if tensor.dtype is torch.int8
                 and name.endswith(".weight")}  # fmt: skip
    assert any(".experts.7.down_proj" in name for name in quantized)
    assert any("q_a_proj" in name for name in quantized)
    assert not any(
        part in name for name in quantized for part in ("kv_b_proj", "mlp.gate.", "embed", "lm_head", "norm")
    )
    for name in before:
        layer = name.removesuffix(".weight")
        kind = scheme.input_kind(layer)
        assert (layer in quantized) == (kind is not None)
        assert (f"{layer}.input_scale" in stored) == (kind == "static")
        if kind is None:
            assert torch.equal(stored[name], before[name])
    scales = {float(stored[f"model.layers.1.mlp.experts.{e}.{p}.input_scale"]) for e in range(8)
              for p in ("gate_proj", "up_proj")
              if f"model.layers.1.mlp.experts.{e}.{p}.input_scale" in stored}  # fmt: skip
    assert len(scales) <= 1  # they read one input


@pytest.mark.parametrize("variant", ["llama", "v3"])
def test_int8_at_load_is_near_the_original_and_batched_equals_single(tiny_llama, moe, variant):
    source = tiny_llama if variant == "llama" else moe
    prompt = PROMPTS[0]
    logits, expected = prompt_logits(source, prompt, quantization="int8"), prompt_logits(source, prompt)
    assert 0 < distance(logits, expected) < 0.15
    prompts = [make_prompt(length, length) for length in (3, 17, 40, 64)]
    engine = load(source, num_kv_blocks=128, quantization="int8")
    together = [result.token_ids for result in generate(engine, prompts, greedy_params(24))]
    alone = [generate(engine, [prompt], greedy_params(24))[0].token_ids for prompt in prompts]
    assert together == alone


def test_an_int8_checkpoint_answers_the_same_batched_and_alone(tmp_path, moe):
    engine = load(make(moe, tmp_path / "int8", "w8a8-static"), num_kv_blocks=128)
    prompts = [make_prompt(length, length) for length in (3, 17, 40, 64)]
    together = [result.token_ids for result in generate(engine, prompts, greedy_params(24))]
    assert together == [generate(engine, [prompt], greedy_params(24))[0].token_ids for prompt in prompts]


def test_int8_at_load_of_an_int8_checkpoint_adds_the_head_only(tmp_path, tiny_llama, monkeypatch):
    folder = make(tiny_llama, tmp_path / "int8", "w8")
    projection, packed = Ops.projection, []
    monkeypatch.setattr(
        Ops, "projection", lambda ops, weight, *rest: packed.append(weight) or projection(ops, weight, *rest)
    )
    for quantization, head in (("none", torch.Tensor), ("int8", QuantizedWeight)):
        packed.clear()
        load(folder, num_kv_blocks=16, quantization=quantization)
        assert isinstance(packed[-1], head)
        assert {type(weight) for weight in packed[:-1]} == {QuantizedWeight}


def test_a_layer_with_massive_activations_becomes_dynamic(tmp_path):
    """What SmolLM2 does: a few values of one input are far beyond the others."""
    folder = tiny.write_llama(tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    up = tensors["model.layers.1.mlp.up_proj.weight"]
    up[5] *= 3000
    tensors["model.layers.1.mlp.down_proj.weight"][:, 5] /= 3000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    make(folder, tmp_path / "int8", "w8a8-static")
    raw = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    assert Int8Scheme.from_config(raw).input_kind("model.layers.1.mlp.down_proj") in ("dynamic", None)


def test_calibration_sees_the_inputs_that_transformers_computes(tiny_llama):
    source = resolve_model(str(tiny_llama))
    config = source.read_config()
    found = calibrate(open_tensors(source, config), config, PROMPTS, torch.float32, progress=False)
    model, seen = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, args, __, name=name: seen.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        for prompt in PROMPTS:
            model(torch.tensor([prompt]))
    assert {layer for item in found for layer in item.layers} == set(seen) - {"lm_head"}
    for item in found:
        for layer in item.layers:
            inputs = torch.cat([x.flatten() for x in seen[layer]])
            expected = StaticInput.over(float(inputs.min()), float(inputs.max()))
            assert item.grid.scale == pytest.approx(expected.scale, rel=1e-4)
            assert abs(item.grid.zero_point - expected.zero_point) <= 1


def measurement(name, cost, static, dynamic):
    return Measurement((name,), cost, StaticInput(0.1, 3), static, dynamic)


def test_the_worst_layers_get_finer_schemes_within_their_budgets():
    layers = [measurement(f"l{i}", 1.0, 0.002, 0.0001) for i in range(38)]
    layers += [measurement("bad", 1.0, 0.9, 0.0002), measurement("worst", 1.0, 0.9, 0.5)]
    recipe = choose("w8a8-static", layers)
    assert recipe.inputs["worst"] is None
    assert recipe.inputs["bad"] is Input.DYNAMIC
    assert recipe.shares == pytest.approx({"static": 25 / 40, "dynamic": 14 / 40, "float": 0, "kept": 1 / 40})
    dynamic = choose("w8a8-dynamic", layers)
    assert dynamic.shares == pytest.approx({"static": 0, "dynamic": 39 / 40, "float": 0, "kept": 1 / 40})
    assert choose("w8", layers).shares["float"] == pytest.approx(1)
    tame = choose("w8a8-static", [measurement("a", 1.0, 0.0005, 0.0001)])
    assert tame.inputs == {"a": StaticInput(0.1, 3)}


GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
}
CONFIG = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": GROUP}}


def changed(path, value):
    config = json.loads(json.dumps(CONFIG))
    *parents, last = path
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


W, X = ("config_groups", "group_0", "weights"), ("config_groups", "group_0", "input_activations")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "pack-quantized", "has format 'pack-quantized'"),
        (("config_groups",), {}, "no config_groups"),
        (("config_groups",), {"g": 3}, "expected an object"),
        (("kv_cache_scheme",), {"num_bits": 8}, "has a kv_cache_scheme"),
        (("sparsity_config",), {"format": "sparse-24-bitmask"}, "sparse weights"),
        (("ignore",), "lm_head", "expected a list of names"),
        (("ignore",), ["re:("], "no regular expression"),
        ((*W, "num_bits"), 4, "has weights"),
        ((*W, "type"), "float", "has weights"),
        ((*W, "symmetric"), False, "has weights"),
        ((*W, "strategy"), "group", "has weights"),
        ((*X, "num_bits"), 4, "has input_activations"),
        ((*X, "strategy"), "tensor", "has input_activations"),
        ((*X, "type"), "float", "has input_activations"),
    ],
)
def test_other_formats_are_refused_and_what_is_read_is_named(tmp_path, tiny_llama, path, value, message):
    config = json.loads((tiny_llama / "config.json").read_text()) | {"quantization_config": changed(path, value)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=re.escape(message)):
        resolve_model(str(tmp_path)).read_config()


def test_targets_match_as_compressed_tensors_has_it():
    scheme = Int8Scheme(
        (("dynamic", ("Linear",)), ("static", ("a.b", r"re:x\.\d+\.y$")), ("float", ("a.c",))),
        ("lm_head", "re:.*gate$"),
    )
    kinds = {
        name: scheme.input_kind(name) for name in ("a.b", "a.c", "x.12.y", "x.12.yy", "lm_head", "m.gate", "other")
    }
    assert kinds == {"a.b": "static", "a.c": "float", "x.12.y": "static", "x.12.yy": "dynamic", "lm_head": None,
                     "m.gate": None, "other": "dynamic"}  # fmt: skip
    assert Int8Scheme.from_config(scheme.to_config()) == scheme


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
def test_damaged_int8_checkpoints_are_refused_by_tensor(tmp_path, tiny_llama, damage, message):
    folder = make(tiny_llama, tmp_path / "int8", "w8")
    raw = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    scheme = Int8Scheme((("static", (r"re:.*\.up_proj$", r"re:.*\.gate_proj$")), ("float", ("Linear",))), ("lm_head",))
    raw["quantization_config"] = scheme.to_config()
    for name in [name for name in tensors if re.search(r"(up|gate)_proj.weight$", name)]:
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.input_scale"], tensors[f"{layer}.input_zero_point"] = torch.ones(1), torch.zeros(1).char()
    for name, tensor in damage.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(message)):
        load(folder, num_kv_blocks=16)


def test_stacked_layers_with_unlike_inputs_are_computed_as_numbers(tmp_path, tiny_llama):
    folder = make(tiny_llama, tmp_path / "int8", "w8")
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = Int8Scheme(
        (("dynamic", (r"re:.*\.up_proj$",)), ("float", ("Linear",))), ("lm_head",)
    ).to_config()
    (folder / "config.json").write_text(json.dumps(raw))
    prompt = PROMPTS[0]
    twin = dequantized(folder, tmp_path / "twin")
    assert relative_error(prompt_logits(folder, prompt), prompt_logits(twin, prompt)) <= 1e-4


def test_fp8_weights_become_int8_without_their_factors(tmp_path, moe):
    tiny_deepseek.quantize_fp8(moe, tmp_path / "fp8", tmp_path / "plain")
    folder = make(tmp_path / "fp8", tmp_path / "int8", "w8")
    assert not any("scale_inv" in name for name in load_file(folder / "model.safetensors"))
    prompt = PROMPTS[0]
    logits, expected = prompt_logits(folder, prompt), prompt_logits(tmp_path / "plain", prompt)
    assert distance(logits, expected) < 0.15
    at_load = prompt_logits(tmp_path / "fp8", prompt, quantization="int8")
    assert distance(at_load, expected) < 0.15


def test_the_built_in_texts_share_no_paragraph():
    calibration, held_out = (
        {" ".join(paragraph.split()) for paragraph in builtin_text(held_out=part).split("\n\n")}
        for part in (False, True)
    )
    assert not calibration & held_out
    assert min(map(len, (builtin_text(held_out=False), builtin_text(held_out=True)))) > 20_000
    assert np.mean([len(text) for text in held_out]) > 20

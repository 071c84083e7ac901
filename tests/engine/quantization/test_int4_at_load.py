"""--quantization int4: weights are rounded to blocks of 4 bits while a model is loaded."""

import pytest
import torch

from engine.errors import ConfigError
from kernels.block_weight import BlockWeight, MixedWeight
from kernels.ops import Ops
from kernels.round_to_blocks import round_to_blocks
from tests.support import checkpoints, tiny_deepseek
from tests.support.int8 import PROMPTS, distance, make_int8
from tests.support.running import assert_batched_equals_alone, load, make_prompt, prompt_logits, relative_error

BATCH = [make_prompt(length, length) for length in (3, 17, 40)]


def logits_of(folder, **options):
    return prompt_logits(load(folder, num_kv_blocks=64, **options), PROMPTS[0])


def rounded(folder, target):
    """The same checkpoint with the values that int4 at load gives to its layers."""
    checkpoints.copy(folder, target)

    def edit(tensors):
        for name, tensor in tensors.items():
            kept = ("norm", "embed", "mlp.gate.", "kv_b_proj", "e_score")
            if tensor.dim() == 2 and not any(part in name for part in kept):
                made = round_to_blocks(tensor, "q8_0" if "lm_head" in name else "q4_0")
                tensors[name] = made.dequantize(tensor.dtype)

    checkpoints.edit_weights(target, edit)
    return target


@pytest.fixture
def source(request, tiny_llama, make_deepseek):
    return tiny_llama if request.param == "llama" else make_deepseek(request.param)


@pytest.mark.parametrize("source", ["llama", "v3"], indirect=True)
def test_logits_are_those_of_the_rounded_weights(tmp_path, source):
    engine = load(source, num_kv_blocks=128, quantization="int4")
    expected = logits_of(rounded(source, tmp_path / "twin"))
    assert distance(prompt_logits(engine, PROMPTS[0]), expected) < 0.1  # inputs are rounded too
    assert distance(expected, logits_of(source)) > 0.02
    assert_batched_equals_alone(engine, BATCH, 16)


def test_torch_computes_with_the_same_weights(tmp_path, tiny_llama):
    logits = logits_of(tiny_llama, quantization="int4", kernels="torch", dtype="float32")
    expected = logits_of(rounded(tiny_llama, tmp_path / "twin"), kernels="torch", dtype="float32")
    assert relative_error(logits, expected) < 1e-4


def test_layers_have_4_bits_and_the_head_8(tiny_llama, monkeypatch):
    projection, packed = Ops.projection, []
    monkeypatch.setattr(
        Ops, "projection", lambda ops, weight, *rest: packed.append(weight) or projection(ops, weight, *rest)
    )
    load(tiny_llama, num_kv_blocks=16, quantization="int4", kernels="reference")
    packed = [weight for weight in packed if not (isinstance(weight, torch.Tensor) and weight.is_meta)]  # a dry run's
    assert {type(weight) for weight in packed} <= {BlockWeight, MixedWeight}
    head, *layers = packed
    assert head.format.name == "q8_0"
    assert {weight.format.name for weight in layers} == {"q4_0"}


def test_fp8_weights_are_rounded(tmp_path, make_deepseek):
    tiny_deepseek.quantize_fp8(make_deepseek("v3"), tmp_path / "fp8", tmp_path / "twin")
    logits, expected = (logits_of(tmp_path / name, quantization="int4") for name in ("fp8", "twin"))
    assert distance(logits, expected) < 0.1


def test_a_model_that_is_quantised_already_is_refused(tmp_path, tiny_llama):
    with pytest.raises(ConfigError, match="quantised already; valid for it are auto"):
        load(make_int8(tiny_llama, tmp_path / "int8", "w8"), quantization="int4")


def test_a_weight_that_no_scale_holds_is_named(folder):
    def enlarge(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e9

    checkpoints.edit_weights(folder, enlarge)
    assert "model.layers.1.mlp.up_proj" in checkpoints.refusal(folder, quantization="int4")

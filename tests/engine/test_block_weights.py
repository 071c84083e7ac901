"""Models of weights in blocks: logits are those of the expanded twin, up to the rounding of inputs.

The twin is the same checkpoint with --quantization none, whose weights are the blocks' values in bf16.
"""

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from engine.build import load_engine
from engine.config import EngineConfig
from kernels.block_weight import FORMATS
from tests.support import tiny_deepseek
from tests.support.gguf_writer import write_gguf
from tests.support.int4 import awq, compressed, gptq, write
from tests.support.running import assert_batched_equals_alone, load, make_prompt, prompt_logits

LLAMA = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.02}
DEEPSEEK = {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 256, "initializer_range": 0.02}
DEEPSEEK |= {"kv_lora_rank": 64, "q_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
KINDS = [Kind[name.upper()] for name in FORMATS if name.upper() in Kind.__members__]
PROMPT = make_prompt(40)
PROMPTS = [make_prompt(length, seed) for seed, length in enumerate((3, 17, 33, 9))]


def q4_k_m(name: str) -> Kind:
    """As llama.cpp mixes them, values and down_proj in Q6_K; an odd format among the experts."""
    if "attn_v" in name or "ffn_down" in name or name == "output.weight":
        return Kind.Q6_K
    return Kind.Q8_0 if "ffn_up" in name else Kind.Q4_K


def error(path, **options) -> float:
    """How far logits are from the twin's: of the vectors of a position, the median."""
    twin = prompt_logits(load(path, dtype="bfloat16", quantization="none"), PROMPT)
    logits = prompt_logits(load(path, dtype="bfloat16", **options), PROMPT)
    return float(((logits - twin).norm(dim=1) / twin.norm(dim=1)).median())


def check(path, int8: float = 0.06) -> None:
    assert error(path, activations="float") < 1e-5  # the same values, the same products
    assert 1e-5 < error(path, activations="int8") < int8
    assert_batched_equals_alone(load(path, dtype="bfloat16"), PROMPTS, 12)


@pytest.mark.parametrize("kind", [*KINDS, q4_k_m], ids=lambda kind: getattr(kind, "name", "mixed"))
def test_llama_in_gguf(make_llama, tmp_path, kind):
    write_gguf(make_llama(**LLAMA), tmp_path / "model.gguf", kind)
    check(tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_K, q4_k_m], ids=lambda kind: getattr(kind, "name", "mixed"))
@pytest.mark.parametrize("variant", ["v2", "v3"])
def test_deepseek_in_gguf(make_deepseek, tmp_path, variant, kind):
    write_gguf(make_deepseek(variant, **DEEPSEEK), tmp_path / "model.gguf", kind)
    check(tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q6_K], ids=lambda kind: kind.name)
def test_a_tied_embedding_is_the_head_too(make_llama, tmp_path, kind):
    write_gguf(make_llama(**LLAMA, tie_word_embeddings=True), tmp_path / "model.gguf", kind)
    check(tmp_path / "model.gguf")


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
            "input_activations": None,
        }
    },
}
LAYOUTS = {
    "compressed-tensors": (COMPRESSED, 32, compressed, {"symmetric": True}),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, 64, awq, {}),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 128, gptq, {}),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_deepseek_in_int4(make_deepseek, tmp_path, layout):
    config, group, pack, options = layout
    source = make_deepseek("v3", **(DEEPSEEK | {"kv_lora_rank": 128}))
    write(source, tmp_path / "int4", tmp_path / "twin", config, group, pack, **options)
    check(tmp_path / "int4")


def test_deepseek_in_fp8(make_deepseek, tmp_path):
    tiny_deepseek.quantize_fp8(make_deepseek("v3", **DEEPSEEK), tmp_path / "fp8", tmp_path / "twin")
    assert error(tmp_path / "fp8") < 1e-5
    assert_batched_equals_alone(load(tmp_path / "fp8", dtype="bfloat16"), PROMPTS, 12)


@pytest.mark.parametrize("kernels", ["torch", "reference"])
def test_other_kernels_take_blocks_too(make_llama, tmp_path, kernels):
    write_gguf(make_llama(**LLAMA), tmp_path / "model.gguf", q4_k_m)
    logits = [
        prompt_logits(load(tmp_path / "model.gguf", kernels=kernels, quantization=quantization), PROMPT)
        for quantization in ("auto", "none")
    ]
    assert ((logits[0] - logits[1]).norm() / logits[1].norm()).item() < (1e-6 if kernels == "torch" else 0.03)


def test_steps_count_the_bytes_of_blocks(make_llama, tmp_path):
    write_gguf(make_llama(**LLAMA), tmp_path / "model.gguf", Kind.Q4_0)
    config = EngineConfig(model=tmp_path / "model.gguf", dtype="bfloat16", device="cpu", num_kv_blocks=8, threads=1)
    assert load_engine(config).executor.runner.model.weight_size == pytest.approx(18 / 32)
    expanded = config.model_copy(update={"quantization": "none"})
    assert load_engine(expanded).executor.runner.model.weight_size == torch.bfloat16.itemsize

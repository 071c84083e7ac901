"""A GGUF file's tensors: the same model as the folder that the file was made from, in both forms of kv_b."""

import math
import mmap
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from engine.errors import ModelError
from engine.loading import random_checkpoint
from engine.loading.gguf_file import GGUFFile
from engine.loading.presets import PRESETS
from engine.loading.resolve import resolve_model
from kernels.block_weight import BlockWeight
from tests.support import checkpoints, tiny, tiny_deepseek
from tests.support.gguf_writer import GGUF_VARIANTS, write_gguf
from tests.support.running import assert_parity, load, make_prompt, prompt_logits, relative_error

WHOLE_BLOCKS = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 24, "q_lora_rank": 32}  # rows of 32 values
PROMPT = make_prompt(30)
LLAMA_KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
both_forms = pytest.mark.parametrize("split_kv_b", [True, False], ids=["split kv_b", "whole kv_b"])


def reference_with(folder, target, tensors):
    """A folder's model in transformers, with other weights."""
    checkpoints.copy(folder, target)
    checkpoints.write_weights(target, tensors)
    return tiny_deepseek.reference(target)


def zeros(*shape):
    return np.zeros(shape, dtype=np.float32)


@pytest.mark.parametrize("kind", LLAMA_KINDS, ids=lambda kind: kind.name)
def test_parity_of_llama_for_every_stored_type(tiny_llama, tmp_path, kind):
    stored = write_gguf(tiny_llama, tmp_path / "model.gguf", kind)
    reference = reference_with(tiny_llama, tmp_path / "twin", stored)
    assert_parity(load(tmp_path / "model.gguf", quantization="none"), reference, make_prompt(37), 32)


@both_forms
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1], ids=lambda kind: kind.name)
def test_parity_of_deepseek_for_every_stored_type(make_deepseek, tmp_path, kind, split_kv_b):
    folder, path = make_deepseek("v3", **WHOLE_BLOCKS), tmp_path / "model.gguf"
    stored = write_gguf(folder, path, kind, split_kv_b=split_kv_b)
    assert {Kind(tensor.ggml_type) for tensor in GGUFFile(path).tensors.values()} == {kind, Kind.F32}
    assert_parity(
        load(path, quantization="none"), reference_with(folder, tmp_path / "twin", stored), make_prompt(37), 32
    )


def test_keys_and_values_of_kv_b_may_have_different_types(make_deepseek, tmp_path):
    folder, path = make_deepseek("v3", **(WHOLE_BLOCKS | {"qk_nope_head_dim": 20})), tmp_path / "model.gguf"
    stored = write_gguf(folder, path, Kind.Q8_0)
    kinds = [GGUFFile(path).tensors[f"blk.1.attn_{part}_b.weight"].ggml_type for part in "kv"]
    assert kinds == [Kind.F16, Kind.Q8_0]
    assert_parity(
        load(path, quantization="none"), reference_with(folder, tmp_path / "twin", stored), make_prompt(37), 32
    )


@pytest.mark.parametrize(
    "config",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4, "head_dim": 32},
        {"mlp_bias": True},
        {"attention_bias": True, "num_key_value_heads": 4},
        {"attention_bias": True},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_parity_of_other_llamas(make_llama, tmp_path, config):
    folder = make_llama(**config)
    stored = write_gguf(folder, tmp_path / "model.gguf")
    assert ("lm_head.weight" in stored) == ("tie_word_embeddings" not in config)
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(37), 32)


@both_forms
@pytest.mark.parametrize("variant", GGUF_VARIANTS)
def test_parity_of_deepseek(make_deepseek, tmp_path, variant, split_kv_b):
    folder, path = make_deepseek(variant), tmp_path / "model.gguf"
    write_gguf(folder, path, split_kv_b=split_kv_b)
    names = GGUFFile(path).tensors
    assert ("blk.0.attn_k_b.weight" in names, "blk.0.attn_kv_b.weight" in names) == (split_kv_b, not split_kv_b)
    assert_parity(load(path), tiny_deepseek.reference(folder), make_prompt(40), 64)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blk.0.mystery.weight", zeros(3), r"unexpected: blk\.0\.mystery\.weight$"),
        ("blk.1.attn_v_b.weight", None, r"lacks blk\.1\.attn_v_b\.weight"),
        ("blk.1.attn_k_b.weight", None, r"missing: model\.layers\.1\.self_attn\.kv_b_proj\.weight$"),
        ("blk.1.attn_k_b.weight", zeros(4, 24, 21), r"kv_b_proj\.weight is \[132, 24\], expected \[128, 24\]"),
        ("blk.1.attn_v_b.weight", zeros(4, 13, 24), r"kv_b_proj\.weight is \[132, 24\], expected \[128, 24\]"),
        ("blk.1.attn_k_b.weight", zeros(5, 24, 20), r"kv_b_proj|blk\.1\.attn_k_b"),
        ("blk.1.attn_k_b.weight", zeros(4, 25, 20), r"kv_b_proj|blk\.1\.attn_k_b"),
        ("blk.1.attn_k_b.weight", zeros(96, 20), r"kv_b_proj|blk\.1\.attn_k_b"),
        ("blk.1.attn_v_b.weight", zeros(48, 24), r"kv_b_proj|blk\.1\.attn_v_b"),
        ("blk.1.ffn_up_exps.weight", zeros(7, 32, 64), r"missing: model\.layers\.1\.mlp\.experts\.7\.up_proj\.weight$"),
        ("blk.2.ffn_down_exps.weight", zeros(9, 64, 32), r"unexpected: model\.layers\.2\.mlp\.experts\.8\.down_proj"),
        ("blk.1.ffn_gate_exps.weight", None, r"missing: model\.layers\.1\.mlp\.experts\.0\.gate_proj\.weight, "),
        (
            "blk.1.ffn_up_exps.weight",
            zeros(8, 64, 32),
            r"experts\.0\.up_proj\.weight is \[64, 32\], expected \[32, 64\]",
        ),
        ("blk.1.ffn_up_exps.weight", zeros(), r"up_proj|blk\.1\.ffn_up_exps"),
        ("blk.1.exp_probs_b.bias", None, r"unexpected: model\.layers\.2\.mlp\.gate\.e_score_correction_bias$"),
        ("blk.2.exp_probs_b.bias", None, r"missing: model\.layers\.2\.mlp\.gate\.e_score_correction_bias$"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(make_deepseek, tmp_path, name, tensor, message):
    write_gguf(make_deepseek("v3"), tmp_path / "model.gguf", extra={name: tensor})
    assert re.search(message, checkpoints.refusal(tmp_path / "model.gguf"))


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_tensors_cut_short_are_refused(tiny_gguf, tmp_path, left):
    whole, cut = tiny_gguf.read_bytes(), tmp_path / "cut.gguf"
    last = max(GGUFFile(tiny_gguf).tensors.values(), key=lambda tensor: tensor.offset)
    size = 4 * math.prod(last.shape)
    cut.write_bytes(whole[: last.offset + (left if left >= 0 else size + left)])
    assert re.search(r"cut short: .* runs past its end", checkpoints.refusal(cut))


def test_a_tensor_of_an_unknown_type_is_refused(tiny_gguf, tmp_path):
    damaged = bytearray(tiny_gguf.read_bytes())
    name = b"output_norm.weight"
    where = damaged.rfind(name) + len(name) + 4 + 8  # after the number of dimensions and the one dimension: the type
    assert int.from_bytes(damaged[where : where + 4], "little") == Kind.F32
    damaged[where : where + 4] = (222).to_bytes(4, "little")
    (tmp_path / "model.gguf").write_bytes(damaged)
    assert "norm.weight has GGML type 222" in checkpoints.refusal(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [(0, 1 << 16, r"cut short: output_norm\.weight, of shape \[65536\], runs past its end"),
     (0, 0, r"output_norm\.weight has no values: its shape is \[0\]"),
     (12, 0, r"damaged: (\S+) begins before (\S+) ends")],
    ids=["size", "no size", "offset"],
)  # fmt: skip
def test_a_directory_that_lies_is_refused_before_a_tensor_is_read(tiny_gguf, tmp_path, field, value, message):
    damaged = bytearray(tiny_gguf.read_bytes())
    name = b"output_norm.weight"
    where = damaged.rfind(name) + len(name) + 4 + field  # after the number of dimensions: the one, type and offset
    damaged[where : where + 8] = value.to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(damaged)
    source = resolve_model(str(tmp_path / "model.gguf"))
    with pytest.raises(ModelError, match=message):
        source.open_tensors(source.read_config())


def test_types_without_kernels_are_expanded_and_named_once(make_llama, tmp_path, caplog):
    folder = make_llama(hidden_size=256, intermediate_size=256, head_dim=64)
    stored = write_gguf(folder, tmp_path / "model.gguf", Kind.TQ2_0)
    logits = [prompt_logits(load(tmp_path / "model.gguf", quantization=quant), PROMPT) for quant in ("auto", "none")]
    assert torch.equal(*logits)
    checkpoints.copy(folder, tmp_path / "twin")
    checkpoints.write_weights(tmp_path / "twin", stored)
    assert relative_error(logits[0], prompt_logits(load(tmp_path / "twin"), PROMPT)) <= 1e-5
    warnings = [line for line in caplog.messages if "TQ2_0" in line]
    assert len(warnings) == 2  # of two loads
    assert "which no kernel multiplies with: expanded, they take" in warnings[0]


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [(Kind.Q4_0, 0, math.nan), (Kind.Q8_0, 0, math.inf), (Kind.Q5_1, 2, -math.inf), (Kind.Q4_K, 2, math.nan),
     (Kind.Q6_K, 208, math.inf)],
    ids=lambda value: getattr(value, "name", str(value)),
)  # fmt: skip
def test_scales_that_are_not_finite_are_refused_by_tensor(make_llama, tmp_path, kind, place, value):
    path = tmp_path / "model.gguf"
    write_gguf(make_llama(hidden_size=256, intermediate_size=256, head_dim=64), path, kind)
    whole = path.read_bytes()
    for name in ("token_embd", "blk.1.attn_q", "blk.0.ffn_up"):
        where = GGUFFile(path).tensors[f"{name}.weight"].offset + place
        path.write_bytes(whole[:where] + struct.pack("<e", value) + whole[where + 2 :])
        tensor = {"token_embd": "embed_tokens", "blk.1.attn_q": "q_proj", "blk.0.ffn_up": "up_proj"}[name]
        assert f"{tensor}.weight has scales that are infinite, no numbers or above" in checkpoints.refusal(path)


def test_rows_that_are_no_whole_blocks_are_refused(make_llama, tmp_path):
    write_gguf(make_llama(hidden_size=64), tmp_path / "model.gguf", Kind.Q4_0)
    damaged = bytearray((tmp_path / "model.gguf").read_bytes())
    name = b"blk.0.ffn_up.weight"
    where = damaged.find(name) + len(name) + 4  # after the number of dimensions: the innermost one
    assert int.from_bytes(damaged[where : where + 8], "little") == 64
    damaged[where : where + 8] = (63).to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(damaged)
    assert "rows of 63 values, which are no whole blocks of Q4_0" in checkpoints.refusal(tmp_path / "model.gguf")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is mapped is read from /proc")
def test_what_was_read_of_a_file_leaves_memory(tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 2, "n_routed_experts": 64, "head_dim": 96}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "eos_token_id": 0}
    config = {**PRESETS["v2-lite"], **sizes, **rope, "moe_intermediate_size": 256}
    random_checkpoint.write(tmp_path / "model", config, dtype=torch.bfloat16, seed=0, fp8=False, progress=False)
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", Kind.Q8_0)
    model = resolve_model(tmp_path / "model.gguf")
    source = model.open_tensors(model.read_config())
    for name in sorted(source.names()):
        if isinstance(value := source.read(name), BlockWeight):
            value.rows_OB.sum()
    source.read("model.norm.weight")
    assert resident(model.path) < 128 << 10
    source.read("model.layers.1.mlp.experts.0.up_proj.weight").rows_OB.sum()
    assert resident(model.path) >= 256 * 256
    source.release()
    assert resident(model.path) <= mmap.PAGESIZE  # the last one is no whole page of the file


def resident(path):
    """Bytes of a mapped file that are in this process's memory."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8").partition(f"{path}\n")[2]
    return int(maps.partition("Rss:")[2].split()[0]) * 1024

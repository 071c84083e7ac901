"""GGUF files of architecture deepseek2: the same model as the folder they were made from, in both forms of kv_b."""

import json

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file

from engine.errors import ModelError
from engine.loading.gguf_file import GGUFFile
from engine.loading.resolve import resolve_model
from engine.models import hf_config
from engine.models.config import ModelConfig
from tests import tiny_deepseek
from tests.engine.gguf_writer import write_gguf
from tests.engine.running import assert_parity, load, make_prompt

VARIANTS = [variant for variant, (kind, _) in tiny_deepseek.VARIANTS.items() if kind in ("v2", "v3")]
WHOLE_BLOCKS = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 24, "q_lora_rank": 32}  # rows of 32 numbers
both_forms = pytest.mark.parametrize("split_kv_b", [True, False], ids=["split kv_b", "whole kv_b"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def make(variant, **changes):
        key = variant, repr(sorted(changes.items()))
        if key not in made:
            made[key] = tiny_deepseek.write(tmp_path_factory.mktemp("deepseek"), variant, **changes)
        return made[key]

    return make


def reference_with(folder, target, tensors, **config):
    """A folder's model in transformers, with other weights and changes to its config."""
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return tiny_deepseek.reference(target)


def zeros(*shape):
    return np.zeros(shape, dtype=np.float32)


@both_forms
@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_with_transformers(checkpoint, tmp_path, variant, split_kv_b):
    folder = checkpoint(variant)
    write_gguf(folder, tmp_path / "model.gguf", split_kv_b=split_kv_b)
    names = GGUFFile(tmp_path / "model.gguf").tensors
    assert ("blk.0.attn_k_b.weight" in names, "blk.0.attn_kv_b.weight" in names) == (split_kv_b, not split_kv_b)
    assert_parity(load(tmp_path / "model.gguf"), tiny_deepseek.reference(folder), make_prompt(40), 64)


@both_forms
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1], ids=lambda k: k.name)
def test_stored_numbers_of_every_kind_give_parity_with_transformers(checkpoint, tmp_path, kind, split_kv_b):
    folder, path = checkpoint("v3", **WHOLE_BLOCKS), tmp_path / "model.gguf"
    stored = write_gguf(folder, path, kind, split_kv_b=split_kv_b)
    assert {Kind(tensor.ggml_type) for tensor in GGUFFile(path).tensors.values()} == {kind, Kind.F32}
    assert_parity(load(path), reference_with(folder, tmp_path / "twin", stored), make_prompt(37), 32)


def test_keys_and_values_of_kv_b_may_be_stored_in_different_kinds(checkpoint, tmp_path):
    folder, path = checkpoint("v3", **(WHOLE_BLOCKS | {"qk_nope_head_dim": 20})), tmp_path / "model.gguf"
    stored = write_gguf(folder, path, Kind.Q8_0)
    kinds = [GGUFFile(path).tensors[f"blk.1.attn_{part}_b.weight"].ggml_type for part in "kv"]
    assert kinds == [Kind.F16, Kind.Q8_0]
    assert_parity(load(path), reference_with(folder, tmp_path / "twin", stored), make_prompt(37), 32)


@both_forms
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_is_the_folder_s(checkpoint, tmp_path, variant, split_kv_b):
    folder = checkpoint(variant)
    write_gguf(folder, tmp_path / "model.gguf", split_kv_b=split_kv_b)
    ours, theirs = resolve_model(str(tmp_path / "model.gguf")).read_config(), hf_config.read_folder(folder)
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)
    assert ours.rope_scaling.get("rope_type") == theirs.rope_scaling.get("rope_type")
    said_otherwise = {"rms_norm_eps", "rope_scaling", "architecture", "head_dim", "num_nextn_predict_layers", "dtype"}
    for name in ModelConfig.__dataclass_fields__.keys() - said_otherwise:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_keys_that_older_files_lack_say_what_v2_lite_has(checkpoint, tmp_path):
    folder = checkpoint("v2-lite")
    names = ("gating_func", "group_count", "group_used_count", "weights_scale")
    write_gguf(folder, tmp_path / "model.gguf", **{f"deepseek2__expert_{name}": None for name in names})
    metadata = GGUFFile(tmp_path / "model.gguf").metadata
    assert not any(f"deepseek2.expert_{name}" in metadata for name in names)
    assert_parity(load(tmp_path / "model.gguf"), tiny_deepseek.reference(folder), make_prompt(40), 32)


def test_without_group_counts_all_experts_are_eligible(checkpoint, tmp_path):
    folder, path = checkpoint("v3"), tmp_path / "model.gguf"
    stored = write_gguf(folder, path, deepseek2__expert_group_count=None, deepseek2__expert_group_used_count=None)
    ungrouped = reference_with(folder, tmp_path / "twin", stored, n_group=1, topk_group=1)
    assert_parity(load(path), ungrouped, make_prompt(40), 32)


@pytest.mark.parametrize("betas", [{"beta_fast": 2}, {"beta_slow": 0.25}], ids=str)
def test_other_betas_of_yarn(checkpoint, tmp_path, betas):
    yarn = tiny_deepseek.VARIANTS["v3"][1]["rope_parameters"]
    folder = checkpoint("v3", rope_parameters=yarn | betas)
    write_gguf(folder, tmp_path / "model.gguf")
    assert_parity(load(tmp_path / "model.gguf"), tiny_deepseek.reference(folder), make_prompt(40), 32)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"blk.1.attn_v_b.weight": None}, r"lacks blk\.1\.attn_v_b\.weight"),
        ({"blk.1.attn_k_b.weight": None}, r"missing: model\.layers\.1\.self_attn\.kv_b_proj\.weight$"),
        ({"blk.1.attn_k_b.weight": zeros(4, 24, 21)}, r"kv_b_proj\.weight is \[132, 24\], expected \[128, 24\]"),
        ({"blk.1.attn_v_b.weight": zeros(4, 13, 24)}, r"kv_b_proj\.weight is \[132, 24\], expected \[128, 24\]"),
        (
            {"blk.1.ffn_up_exps.weight": zeros(7, 32, 64)},
            r"missing: model\.layers\.1\.mlp\.experts\.7\.up_proj\.weight$",
        ),
        ({"blk.2.ffn_down_exps.weight": zeros(9, 64, 32)}, r"unexpected: model\.layers\.2\.mlp\.experts\.8\.down_proj"),
        ({"blk.1.ffn_gate_exps.weight": None}, r"missing: model\.layers\.1\.mlp\.experts\.0\.gate_proj\.weight, "),
        (
            {"blk.1.ffn_up_exps.weight": zeros(8, 64, 32)},
            r"misshapen: model\.layers\.1\.mlp\.experts\.0\.up_proj\.weight is \[64, 32\], expected \[32, 64\]",
        ),
        ({"blk.1.exp_probs_b.bias": None}, r"unexpected: model\.layers\.2\.mlp\.gate\.e_score_correction_bias$"),
        ({"blk.2.exp_probs_b.bias": None}, r"missing: model\.layers\.2\.mlp\.gate\.e_score_correction_bias$"),
        ({"blk.1.attn_k_b.weight": zeros(5, 24, 20)}, r"kv_b_proj|blk\.1\.attn_k_b"),
        ({"blk.1.attn_k_b.weight": zeros(4, 25, 20)}, r"kv_b_proj|blk\.1\.attn_k_b"),
        ({"blk.1.attn_k_b.weight": zeros(96, 20)}, r"kv_b_proj|blk\.1\.attn_k_b"),
        ({"blk.1.attn_v_b.weight": zeros(48, 24)}, r"kv_b_proj|blk\.1\.attn_v_b"),
        ({"blk.1.ffn_up_exps.weight": zeros()}, r"up_proj|blk\.1\.ffn_up_exps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit_are_named(checkpoint, tmp_path, extra, message):
    write_gguf(checkpoint("v3"), tmp_path / "model.gguf", extra=extra)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_count": None}, r"lacks 'deepseek2\.expert_count'"),
        (
            {"expert_count": 12},
            r"missing: .*experts\.10\..*misshapen: .*gate\.weight is \[8, 64\], expected \[12, 64\]",
        ),
        ({"expert_count": 4, "expert_group_count": 2}, r"unexpected: model\.layers\.1\.mlp\.experts\.4\."),
        ({"expert_group_count": 3}, r"n_routed_experts \(8\) is not a multiple of n_group \(3\)"),
        ({"expert_used_count": 5}, r"num_experts_per_tok \(5\) exceeds the experts of topk_group groups"),
        ({"expert_gating_func": 3}, r"expert_gating_func in the GGUF file is 3; expected 1 \(softmax\) or 2 \(sigmoid"),
        ({"expert_weights_norm": 1}, r"expert_weights_norm in the GGUF file is 1; expected true or false"),
        ({"leading_dense_block_count": 2}, r"unexpected: model\.layers\.1\.mlp\.experts\."),
        ({"attention.q_lora_rank": None}, r"missing: .*q_proj\.weight; unexpected: .*q_a_layernorm"),
        ({"attention.kv_lora_rank": 25}, r"misshapen: .*kv_a_layernorm\.weight is \[24\], expected \[25\]"),
        ({"attention.value_length_mla": None}, r"lacks 'deepseek2\.attention\.value_length_mla'"),
        ({"attention.key_length_mla": 40}, r"misshapen: .*kv_b_proj\.weight is \[128, 24\], expected \[144, 24\]"),
        ({"rope.dimension_count": 15}, r"15 dimensions rotate"),
        ({"attention.key_length_mla": 10}, r"key_length_mla|qk_nope_head_dim"),
        ({"expert_group_used_count": 5}, r"expert_group_used_count|topk_group"),
    ],
    ids=str,
)
def test_keys_that_do_not_fit_are_named(checkpoint, tmp_path, metadata, message):
    keys = {f"deepseek2.{key}": value for key, value in metadata.items()}
    write_gguf(checkpoint("v3"), tmp_path / "model.gguf", **keys)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "model.gguf")

"""DeepSeek's own models against transformers: logits and greedy tokens of tiny random checkpoints of every variant."""

import json
import logging
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.models import hf_config, mla, mla_plan
from tests import tiny_deepseek
from tests.engine.running import (
    assert_parity,
    generate,
    greedy_params,
    load,
    make_prompt,
    record_logits,
    relative_error,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def make(variant):
        if variant not in made:
            made[variant] = tiny_deepseek.write(tmp_path_factory.mktemp("deepseek"), variant)
        return made[variant]

    return make


def count_calls(monkeypatch, owner, name):
    """A list that grows with each call of a method, which works as before."""
    calls, method = [], getattr(owner, name)

    def counted(*args):
        calls.append(args)
        return method(*args)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("variant", tiny_deepseek.VARIANTS)
def test_parity_with_transformers(checkpoint, variant):
    folder = checkpoint(variant)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 64)


@pytest.mark.parametrize("kernels", ["reference", "torch"])
@pytest.mark.parametrize("variant", ["v2", "v3", "v32"])
def test_parity_on_other_kernels(checkpoint, variant, kernels):
    folder = checkpoint(variant)
    assert_parity(load(folder, kernels=kernels), tiny_deepseek.reference(folder), make_prompt(30), 24)


def test_v1_equals_a_qwen2_moe_with_half_a_gate_and_its_code_is_never_run(tmp_path):
    reference = tiny_deepseek.write_v1(tmp_path)
    assert_parity(load(tmp_path), reference, make_prompt(40), 64)


@pytest.mark.parametrize("variant", ["v2-lite", "v2", "v3", "v32"])
def test_chunked_and_batched_prompts_give_what_a_whole_one_alone_gives(checkpoint, variant):
    prompts = [make_prompt(length, seed=length) for length in (3, 90, 31, 64)]
    alone = [generate(load(checkpoint(variant)), [prompt], greedy_params(24))[0].token_ids for prompt in prompts]
    for options in ({}, {"max_batched_tokens": 4, "max_batch_size": 4}, {"max_batched_tokens": 17, "block_size": 7}):
        engine = load(checkpoint(variant), **{"max_batch_size": 8, **options})
        assert [result.token_ids for result in generate(engine, prompts, greedy_params(24))] == alone


@pytest.mark.parametrize("form", ["expanded", "expanded by heads", "absorbed"])
@pytest.mark.parametrize("variant", ["v2-lite", "v3"])
def test_long_prompts_equal_transformers_in_both_forms_of_the_attention(checkpoint, variant, form, monkeypatch):
    if form == "absorbed":
        monkeypatch.setattr(mla_plan, "_min_expanded_queries", lambda config: math.inf)
    elif form == "expanded by heads":
        monkeypatch.setattr(mla, "_MAX_EXPANDED_VALUES", 1)
    expanded = count_calls(monkeypatch, mla.MultiHeadLatentAttention, "_attend_expanded")
    folder = checkpoint(variant)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(300), 8)
    assert len(expanded) == (0 if form == "absorbed" else 3)  # in each layer


@pytest.mark.parametrize("variant", ["v2-lite", "v3"])
def test_a_step_of_decodes_short_and_long_chunks_keeps_them_apart(checkpoint, variant, monkeypatch):
    prompts = [make_prompt(length, seed=length) for length in (3, 200, 31, 90)]
    alone = [generate(load(checkpoint(variant)), [prompt], greedy_params(24))[0].token_ids for prompt in prompts]
    engine = load(checkpoint(variant), max_batched_tokens=150)
    expanded = count_calls(monkeypatch, mla.MultiHeadLatentAttention, "_attend_expanded")
    assert [result.token_ids for result in generate(engine, prompts, greedy_params(24))] == alone
    assert expanded


@pytest.mark.parametrize("variant", ["v2", "v3", "v32"])
def test_a_bf16_checkpoint_is_near_its_fp32_reference(tmp_path, variant):
    folder = tiny_deepseek.write(tmp_path, variant, dtype=torch.bfloat16)
    engine = load(
        folder
    )  # bf16 weights, fp32 arithmetic: nothing but the weights' rounding, which the reference shares
    assert_parity(engine, tiny_deepseek.reference(folder), make_prompt(40), 16)
    engine, prompt = load(folder, dtype="bfloat16"), make_prompt(40)
    recorded = record_logits(engine)
    generate(engine, [prompt], greedy_params(0, prompt_logprobs=0))
    with torch.no_grad():
        expected = tiny_deepseek.reference(folder)(torch.tensor([prompt])).logits[0]
    # A near tie in a router or an indexer can fall the other way in bf16, so the typical position is what counts.
    errors = (torch.cat(recorded) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert errors.median() < 0.05


@pytest.mark.parametrize("variant", ["v2-lite", "v3", "v32"])
def test_the_cache_holds_the_latent_and_the_rotary_key_and_nothing_else(checkpoint, variant):
    engine = load(checkpoint(variant), num_kv_blocks=50)
    values = sum(cache.numel() for layer in engine._runner._kv_pool.layers for cache in layer)
    index_keys = 24 if variant == "v32" else 0
    assert values == 50 * 16 * 3 * (24 + 16 + index_keys)


@pytest.mark.parametrize("sizes", [{"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 256}, {}])
def test_fp8_weights_give_what_their_dequantised_twin_gives(tmp_path, sizes):
    folder = tiny_deepseek.write(tmp_path / "plain", "v3", **sizes)
    tiny_deepseek.quantize_fp8(folder, tmp_path / "fp8", tmp_path / "twin")
    logits = []
    for name in ("fp8", "twin"):
        engine = load(tmp_path / name)
        recorded = record_logits(engine)
        generate(engine, [make_prompt(30)], greedy_params(16, prompt_logprobs=0))
        logits.append(torch.cat(recorded))
    assert relative_error(*logits) <= 1e-5  # the same weights; products may sum in another order


def test_fp8_blocks_of_another_size_and_factors_that_do_not_fit(tmp_path):
    folder = tiny_deepseek.write(tmp_path / "plain", "v3")
    tiny_deepseek.quantize_fp8(folder, tmp_path / "fp8", tmp_path / "twin", block=(48, 20))
    results = [generate(load(tmp_path / name), [make_prompt(30)], greedy_params(16)) for name in ("fp8", "twin")]
    assert results[0] == results[1]
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [128, 128]
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"misshapen: .*down_proj\.weight_scale_inv is \[2, 5\], expected \[1, 1\]"):
        load(tmp_path / "fp8")


def test_mtp_layers_are_left_out_of_the_main_model_in_silence(checkpoint, tmp_path, caplog):
    folder = checkpoint("v3")
    tensors = load_file(folder / "model.safetensors")
    expected = generate(load(folder), [make_prompt(20)], greedy_params(16))
    for name in ("enorm.weight", "eh_proj.weight", "shared_head.norm.weight", "mlp.experts.7.up_proj.weight"):
        tensors[f"model.layers.3.{name}"] = torch.randn(8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        assert generate(load(tmp_path), [make_prompt(20)], greedy_params(16)) == expected
    assert not caplog.records


def test_v4_is_refused_with_what_is_supported():
    with pytest.raises(ModelError, match=r"DeepseekV4ForCausalLM is not supported yet; supported: .*DeepseekV32"):
        hf_config.parse({"architectures": ["DeepseekV4ForCausalLM"]}, {})


def test_norm_topk_prob_of_a_softmax_router_renormalises_instead_of_scaling(checkpoint, tmp_path):
    """DeepSeek's own V2 code does one or the other; transformers' V2 ignores norm_topk_prob and always scales."""
    folder = checkpoint("v2-lite, scaled")
    engines = {}
    for norm in (False, True):
        target = tmp_path / str(norm)
        target.mkdir()
        (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        config = json.loads((folder / "config.json").read_text()) | {"norm_topk_prob": norm}
        (target / "config.json").write_text(json.dumps(config))
        engines[norm] = load(target)
    x = torch.randn(5, 64)
    routers = {norm: engine._runner._model._layers[1]._mlp._router for norm, engine in engines.items()}
    (ids, scaled), (same_ids, renormalised) = routers[False].forward(x), routers[True].forward(x)
    assert torch.equal(ids, same_ids)
    torch.testing.assert_close(renormalised.sum(-1), torch.ones(5))
    torch.testing.assert_close(scaled / scaled.sum(-1, keepdim=True), renormalised)
    assert relative_error(scaled, renormalised) > 0.1


def test_rope_over_halves_instead_of_neighbours(tmp_path):
    folder = tiny_deepseek.write(tmp_path, "v3", rope_interleave=False)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 32)


@pytest.mark.parametrize("changes", [{"rms_norm_eps": 1e-2}, {"first_k_dense_replace": 0}], ids=str)
@pytest.mark.parametrize("variant", ["v2-lite", "v3"])
def test_parity_with_other_settings(tmp_path, variant, changes):
    folder = tiny_deepseek.write(tmp_path, variant, **changes)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 16)


def test_yarn_whose_two_mscales_differ(tmp_path):
    yarn = tiny_deepseek.VARIANTS["v3"][1]["rope_parameters"] | {"mscale": 1.0, "mscale_all_dim": 0.5}
    folder = tiny_deepseek.write(tmp_path, "v3", rope_parameters=yarn)
    assert_parity(load(folder), tiny_deepseek.reference(folder), make_prompt(40), 16)


def edit_fp8(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_fp8_weights_without_their_factors_are_refused_by_name(tmp_path):
    folder = tiny_deepseek.write(tmp_path / "plain", "v3")
    tiny_deepseek.quantize_fp8(folder, tmp_path / "fp8", tmp_path / "twin")
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv"
    edit_fp8(tmp_path / "fp8", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=rf"missing: {name}$"):
        load(tmp_path / "fp8")


def test_fp8_with_an_fp8_mtp_layer(tmp_path):
    folder = tiny_deepseek.write(tmp_path / "plain", "v3")
    tiny_deepseek.quantize_fp8(folder, tmp_path / "fp8", tmp_path / "twin")
    expected = generate(load(tmp_path / "fp8"), [make_prompt(20)], greedy_params(8))

    def add_mtp(tensors):
        for name, tensor in list(tensors.items()):
            if name.startswith("model.layers.2."):
                tensors[name.replace(".2.", ".3.", 1)] = tensor.clone()

    edit_fp8(tmp_path / "fp8", add_mtp)
    assert generate(load(tmp_path / "fp8"), [make_prompt(20)], greedy_params(8)) == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_numbers_to_compute_with_are_refused(tmp_path, dtype):
    folder = tiny_deepseek.write(tmp_path, "v2-lite")
    name = "model.layers.0.mlp.down_proj.weight"
    edit_fp8(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(ModelError, match=rf"{name} is stored as {str(dtype).removeprefix('torch.')}"):
        load(folder)


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("v32", {"index_head_dim": 8}, "index_head_dim"),
        ("v32", {"q_lora_rank": None}, "q_lora_rank"),
        ("v3", {"quantization_config": "fp8"}, "quantization_config"),
        ("v3", {"quantization_config": {"quant_method": "fp8", "weight_block_size": 5}}, "weight_block_size"),
        ("v3", {"architectures": 5}, "architectures"),
        ("v3", {"eos_token_id": [[2]]}, "eos_token_id"),
        ("v3", {"eos_token_id": "2"}, "eos_token_id"),
        ("v3", {"routed_scaling_factor": float("inf")}, "routed_scaling_factor"),
        ("v3", {"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ("v3", {"rope_parameters": {"rope_type": "yarn", "factor": "x"}}, "factor"),
        ("v3", {"rope_parameters": {"rope_type": "yarn", "factor": -2.0}}, "factor"),
        ("v3", {"rope_parameters": {"rope_type": "default", "rope_theta": [1]}}, "rope_theta"),
        ("v3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("v3", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("v3", {"num_hidden_layers": 10**6}, r"missing: .* more"),
        ("v3", {"hidden_size": 10**7}, "misshapen"),
        ("v3", {"vocab_size": 10**12}, "vocab_size"),
        ("v3", {"n_routed_experts": 4 * 10**6}, r"missing: .* more"),
        ("v3", {"max_position_embeddings": 10**10}, "max_position_embeddings"),
    ],
    ids=str,
)
def test_absurd_configs_are_refused_at_once_and_by_name(checkpoint, tmp_path, variant, changes, words):
    source = checkpoint(variant)
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load(tmp_path)

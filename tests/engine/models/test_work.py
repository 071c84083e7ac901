"""The work of a step against what others count: a checkpoint its weights, torch the products of transformers."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from engine.models import registry
from engine.models.work import step_work
from kernels.attention_pattern import FULL
from tests.support import tiny, tiny_deepseek, tiny_dynamic_moe
from tests.support.dynamic_moe_reference import DynamicMoEReference

MANY = 100_000  # tokens, of which each expert has some


@pytest.fixture(params=["llama", "tied llama", *tiny_deepseek.VARIANTS, "dynamic-moe"])
def folder(request, tmp_path):
    if request.param == "dynamic-moe":
        return tiny_dynamic_moe.write(tmp_path / "model", "full", task_heads={})
    if request.param.endswith("llama"):
        return tiny.write_llama(tmp_path, tie_word_embeddings=request.param.startswith("tied"))
    return tiny_deepseek.write(tmp_path, request.param)


def test_all_matrices_of_a_checkpoint_are_read_once(folder):
    config = registry.read_folder(folder)
    weights = load_file(folder / "model.safetensors")
    matrices = {name: w for name, w in weights.items() if w.dim() > 1 and "modality" not in name}  # which are looked up
    embedding = matrices["model.embed_tokens.weight"].numel()
    num_values = sum(w.numel() for w in matrices.values()) - (0 if config.tie_word_embeddings else embedding)
    assert step_work(config, [MANY], [0], 1, weight_size=2, entry_size=0).bytes == pytest.approx(2 * num_values)
    without_head = step_work(config, [MANY], [0], 0, weight_size=1, entry_size=0).bytes
    assert without_head == pytest.approx(num_values - embedding)


def test_one_token_reads_only_the_experts_that_it_chooses(tmp_path):
    config = registry.read_folder(tiny_deepseek.write(tmp_path, "v3"))
    one, two, many = (step_work(config, [n], [0], 1, weight_size=1, entry_size=0).bytes for n in (1, 2, MANY))
    expert, moe = 3 * 64 * 32, config.moe
    assert many - one == pytest.approx(2 * expert * (moe.n_routed_experts - moe.num_experts_per_tok))
    assert one + 2 * expert < two < one + 2 * expert * moe.num_experts_per_tok


def test_products_with_weights_can_be_in_int8_and_attention_is_not(tmp_path):
    config = registry.read_folder(tiny.write_llama(tmp_path))
    near, far = (step_work(config, [1], [n], 1, weight_size=0, entry_size=0, int8_share=1.0) for n in (1, 100))
    assert near.int8_flops == far.int8_flops > 0.9 * near.flops
    assert far.flops - far.int8_flops == 100 * (near.flops - near.int8_flops)
    in_floats = step_work(config, [1], [1], 1, weight_size=0, entry_size=0)
    assert (in_floats.flops, in_floats.int8_flops) == (near.flops, 0)
    assert in_floats.seconds_of(1e9) == in_floats.flops / 1e9
    assert near.seconds_of(1e9) == (near.flops - near.int8_flops / 2) / 1e9


def test_contexts_are_read_once_for_each_sequence_and_layer(tmp_path):
    config = registry.read_folder(tiny.write_llama(tmp_path))
    work = step_work(config, [1, 5], [10, 7], 2, weight_size=0, entry_size=128)
    assert work.bytes == 3 * 17 * 128


@pytest.mark.parametrize("num_tokens", [1, 7, 20])
def test_arithmetic_is_what_torch_counts(tmp_path, num_tokens):
    """Transformers computes all pairs of queries and positions; here those count that causal attention sees."""
    folder = tiny.write_llama(tmp_path)
    config, model = registry.read_folder(folder), tiny_deepseek.reference(folder)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(num_tokens)[None])
    unseen = 3 * 4 * 4 * 16 * num_tokens * (num_tokens - 1) / 2  # layers, flops, heads, head_dim
    work = step_work(config, [num_tokens], [num_tokens], num_tokens, weight_size=0, entry_size=0)
    assert work.flops == pytest.approx(counter.get_total_flops() - unseen)


def test_a_prompt_in_chunks_is_as_much_arithmetic_as_the_whole(tmp_path):
    config = registry.read_folder(tiny.write_llama(tmp_path))
    shares = ((20, 20), (1, 1), (16, 17), (3, 20))
    works = [step_work(config, [n], [end], n, weight_size=0, entry_size=0) for n, end in shares]
    whole, *chunks = (work.flops for work in works)
    assert sum(chunks) == pytest.approx(whole)


def test_latent_attention_of_a_decode_is_counted_absorbed(tmp_path):
    config = registry.read_folder(tiny_deepseek.write(tmp_path, "v2-lite"))
    flops = [step_work(config, [1], [n], 1, weight_size=0, entry_size=0).flops for n in (10, 11)]
    assert flops[1] - flops[0] == 3 * 2 * 4 * (2 * 24 + 16)


@pytest.mark.parametrize("layer", range(3), ids=["full", "local", "block sparse"])
@pytest.mark.parametrize(("query_len", "context_len"), [(1, 90), (7, 90), (40, 40), (1, 1)])
def test_of_a_context_counts_what_queries_see(make_dynamic_moe, layer, query_len, context_len):
    """Against the definition's rule for each pair."""
    folder = make_dynamic_moe("mixed", sparse_block_size=8)
    config, reference = registry.read_folder(folder), DynamicMoEReference(folder)
    queries = range(context_len - query_len, context_len)
    sees = [[reference.sees(layer, query, key) for key in range(context_len)] for query in queries]
    full, own = (
        step_work(
            replace(config, num_hidden_layers=1, attention_patterns=(pattern,)),
            [query_len],
            [context_len],
            0,
            weight_size=0,
            entry_size=1,
        )
        for pattern in (FULL, config.attention_patterns[layer])
    )
    assert own.bytes == sum(map(any, zip(*sees, strict=True)))
    num_unseen = sum(query + 1 for query in queries) - sum(map(sum, sees))
    assert full.flops - own.flops == 4 * 4 * 16 * num_unseen  # heads, head_dim

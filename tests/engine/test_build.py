"""What an engine is built as: the size of its KV cache, and the limits that it then reports."""

import pytest

from engine.errors import ConfigError
from tests.support.running import generate, greedy_params, load, make_prompt


def test_the_info_says_what_was_resolved(tiny_llama):
    info = load(tiny_llama, max_seq_len=300, num_kv_blocks=50, block_size=8).info
    assert (info.max_seq_len, info.vocab_size, info.num_blocks, info.block_size) == (300, 258, 50, 8)
    assert (info.device, info.dtype) == ("cpu", "float32")


def test_a_pool_smaller_than_a_sequence_shortens_max_seq_len(tiny_llama):
    engine = load(tiny_llama, num_kv_blocks=3)
    assert engine.info.max_seq_len == 48
    (result,) = generate(engine, [make_prompt(40)], greedy_params(8))
    assert len(result.token_ids) == 8


def test_kv_cache_memory_sizes_the_pool(tiny_llama):
    one_block = 2 * 2 * 16 * 4 * 3 * 16  # keys and values, 2 heads of 16 in fp32, 3 layers, 16 slots
    engine = load(tiny_llama, kv_cache_memory=(10.5 * one_block) / (1 << 30))
    assert engine.info.num_blocks == 10


def test_the_default_pool_holds_no_more_than_a_full_batch_needs(tiny_llama):
    assert load(tiny_llama, max_batch_size=3, max_seq_len=33).info.num_blocks == 3 * 3


def test_the_memory_is_told_by_part(tiny_llama, caplog):
    with caplog.at_level("INFO"):
        memory = load(tiny_llama, num_kv_blocks=50).info.memory
    assert memory.kv_cache == 50 * 2 * 2 * 16 * 4 * 3 * 16  # keys and values, 2 heads of 16 in fp32, 3 layers, 16 slots
    assert memory.other > 0
    assert f"memory: {memory}; " in caplog.text


@pytest.mark.parametrize("max_seq_len", [1, 2, 3])
def test_the_shortest_contexts_load_and_compute(tiny_llama, max_seq_len):
    engine = load(tiny_llama, max_seq_len=max_seq_len)
    (result,) = generate(engine, [[5]], greedy_params(max_seq_len - 1))
    assert len(result.token_ids) == max_seq_len - 1


@pytest.mark.parametrize(
    "options", [{"num_kv_blocks": 10**12}, {"kv_cache_memory": 1e300}, {"kv_cache_memory": 1e5}], ids=str
)
def test_a_cache_beyond_the_memory_is_refused_with_what_is_free(tiny_llama, options):
    with pytest.raises(ConfigError, match=r"needs .* GiB; .* are free"):
        load(tiny_llama, **options)


def test_a_pool_without_a_block_for_each_kind_of_layer_is_refused(make_dynamic_moe):
    with pytest.raises(ConfigError, match="layers are of 3 kinds, which need a block each: at least 3"):
        load(make_dynamic_moe("mixed"), num_kv_blocks=2)
    assert load(make_dynamic_moe("mixed"), num_kv_blocks=3).info.max_seq_len == 16


def test_a_pool_smaller_than_what_full_attention_would_need_is_enough_for_a_window(make_dynamic_moe):
    info = load(make_dynamic_moe("local"), num_kv_blocks=8, max_batched_tokens=32).info
    assert (info.max_seq_len, info.num_blocks) == (512, 8)

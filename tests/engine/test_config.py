import dataclasses

import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "--dtype is 'int4'; valid are auto, bfloat16, float16, float32"),
        ({"device": "tpu"}, "--device is 'tpu'; valid are auto, cpu, cuda"),
        ({"kernels": "magic"}, "--kernels is 'magic'; valid are auto, native, torch, flash-attn, reference"),
        ({"threads": 0}, "--threads is 0; it must be at least 1"),
        ({"max_batch_size": 0}, "--max-batch-size is 0; it must be at least 1"),
        ({"max_seq_len": -5}, "--max-seq-len is -5; it must be at least 1"),
        ({"max_batched_tokens": 0}, "--max-batched-tokens is 0; it must be at least 1"),
        ({"block_size": 0}, "--block-size is 0; it must be at least 1"),
        ({"num_kv_blocks": 0}, "--num-kv-blocks is 0; it must be at least 1"),
        ({"seed": -1}, "--seed is -1; it must be at least 0"),
        ({"kv_cache_memory": 0.0}, "--kv-cache-memory is 0.0; it must be more than 0 (GiB)"),
        ({"kv_cache_memory": float("nan")}, "--kv-cache-memory is nan; it must be more than 0 (GiB)"),
        ({"kv_cache_memory": 1.0, "num_kv_blocks": 5}, "--kv-cache-memory and --num-kv-blocks both size the KV cache"),
        ({"max_batched_tokens": 31}, "--max-batched-tokens is 31; it must be at least --max-batch-size (32)"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_its_flag_with_what_is_valid(options, message):
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"max_batched_tokens": 32}, {"kv_cache_memory": 0.001}, {"seed": 0}], ids=str)
def test_defaults_and_values_at_their_bounds_are_accepted(options):
    config = EngineConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().dtype = "float32"


def test_every_field_carries_its_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(EngineConfig))

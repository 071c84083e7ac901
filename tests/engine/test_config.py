"""The engine's settings by themselves. What each bad value is answered with is in tests/server/test_cli.py."""

from pathlib import Path

import pydantic
import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "--dtype is 'int4'; valid are auto, bfloat16, float16, float32"),
        ({"max_batch_size": 0}, "--max-batch-size is 0; it must be at least 1"),
        ({"kv_cache_memory": float("nan")}, "--kv-cache-memory is nan; it must be a finite number"),
        ({"max_batched_tokens": 31}, "--max-batched-tokens is 31; it must be at least --max-batch-size (32)"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_its_flag_with_what_is_valid(options, message):
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_batched_tokens": 32}, {"kv_cache_memory": 0.001}, {"seed": 0}, {"prefill_share": float("inf")},
     {"model": Path("/models/a")}],
    ids=str,
)  # fmt: skip
def test_defaults_and_values_at_their_bounds_are_accepted(options):
    config = EngineConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_an_unknown_setting_is_a_type_error():
    with pytest.raises(TypeError, match="EngineConfig has no setting 'max_batch_sise'"):
        EngineConfig(max_batch_sise=1)


def test_the_config_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        EngineConfig().dtype = "float32"


def test_every_setting_carries_its_help():
    assert all(field.description for field in EngineConfig.model_fields.values())

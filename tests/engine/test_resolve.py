"""From settings to a ResolvedConfig: every "auto" and None is settled before a weight is loaded."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.kv_cache_pool import CacheLayout
from engine.loading.resolve import ModelSource
from engine.resolve import ResolvedConfig, resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's config without its weights."""
    folder = tmp_path_factory.mktemp("config")
    shutil.copy(tiny_llama / "config.json", folder)
    return folder


def resolved(folder: Path, **options: Any) -> ResolvedConfig:
    return resolve(EngineConfig(**{"device": "cpu", **options}), ModelSource(folder, "tiny"))


def test_only_the_number_of_blocks_is_left_open(folder: Path) -> None:
    config = resolved(folder, model=str(folder))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    assert [name for name, value in values.items() if value is None] == ["num_kv_blocks"]
    assert [name for name, value in values.items() if value == "auto"] == ["activations"]  # the weights settle it
    assert config.dtype in (torch.bfloat16, torch.float32)
    assert (config.max_seq_len, config.max_batched_tokens, config.max_kv_blocks) == (512, 512, 32 * 32)
    assert config.threads >= 1


def test_the_defaults_follow_other_settings(folder: Path) -> None:
    config = resolved(folder, max_batch_size=600, max_seq_len=33, kv_cache_dtype="int8", dtype="float32")
    assert (config.max_batched_tokens, config.max_kv_blocks) == (600, 600 * 3)
    assert config.kv_cache == CacheLayout(((2, 16), (2, 16)), 3, 16, torch.float32, (1, 1))
    assert config.kv_cache.bytes_per_block == 2 * 2 * (16 + 4) * 3 * 16  # a value's byte, a row's scale; layers, slots
    packed = resolved(folder, kv_cache_dtype="int4", dtype="float32").kv_cache
    assert packed.bytes_per_block == 2 * ((16 + 2 + 2) + (16 + 2)) * 3 * 16  # half bytes filled up, fifth bits, scales


def test_values_that_are_set_are_kept(folder: Path) -> None:
    options = {"threads": 3, "max_batched_tokens": 64, "num_kv_blocks": 7}
    others = {"device": "cpu", "policy": "fair", "block_size": 8, "kernels": "torch", "dtype": "float16"}
    config = resolved(folder, **options, **others)
    assert {name: getattr(config, name) for name in options} == options
    assert (config.ops.name, config.dtype, config.kv_cache.block_size) == ("torch", torch.float16, 8)
    assert config.settings == EngineConfig(**options, **others)


def test_it_is_logged_whole_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "engine.resolve")
    resolved(folder, kernels="torch")
    [line] = [record.getMessage() for record in caplog.records if record.name == "engine.resolve"]
    assert line.startswith(f"resolved: source {folder}, model LlamaForCausalLM, device cpu, dtype torch.")
    assert "\n" not in line
    words = {field.name for field in dataclasses.fields(ResolvedConfig)} | EngineConfig.model_fields.keys()
    settled = {
        "settings",
        "kernels",
        "kv_cache_dtype",
        "kv_cache_memory",
        "block_size",
    }  # the others say what came of them
    assert all(f"{word} " in line for word in words - settled)
    as_stored = ("quantization auto", "activations auto")  # each layer's own, which the weights settle
    assert line.count("auto") == sum(line.count(words) for words in as_stored)
    assert "ops torch, " in line


def test_only_the_default_model_keeps_its_inputs_in_floats(folder: Path) -> None:
    source = ModelSource(folder, "tiny")
    assert resolve(EngineConfig(device="cpu"), source).activations == "float"
    assert resolve(EngineConfig(device="cpu", activations="int8"), source).activations == "int8"
    assert resolved(folder, model=str(folder)).activations == "auto"


def test_it_is_frozen(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved(folder).threads = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seq_len": 513}, "--max-seq-len is 513; the model was made for 512"),
        ({"kv_cache_memory": 1e-9}, "--kv-cache-memory is 1e-09 GiB; one block has"),
        ({"kernels": "flash-attn"}, "--kernels flash-attn cannot run here: it needs a GPU"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_model_or_the_machine_are_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(folder, **options)


@pytest.mark.parametrize(("sparse", "expected"), [(64, 16), (16, 16), (48, 16), (8, 8), (24, 24), (20, 20), (37, 1)])
def test_blocks_are_parts_of_sparse_blocks(make_dynamic_moe: Callable[..., Path], sparse: int, expected: int) -> None:
    folder = make_dynamic_moe("defaults", sparse_block_size=sparse)
    assert resolved(folder).kv_cache.block_size == expected
    assert resolved(folder, block_size=1).kv_cache.block_size == 1


def test_a_block_size_that_divides_no_sparse_block_is_refused(make_dynamic_moe: Callable[..., Path]) -> None:
    message = (
        "--block-size is 16; it must divide the model's sparse blocks of 24 tokens: valid are 1, 2, 3, 4, 6, 8, 12, 24"
    )
    with pytest.raises(ConfigError, match=message):
        resolved(make_dynamic_moe("defaults", sparse_block_size=24), block_size=16)


def test_the_default_pool_is_what_a_full_batch_holds_at_once(make_dynamic_moe: Callable[..., Path]) -> None:
    local = make_dynamic_moe("local", max_position_embeddings=1 << 15)
    config = resolved(local, max_batch_size=4)
    assert config.max_kv_blocks == 4 * ((33 + 512 - 1 + 14) // 16 + 1)
    mixed = make_dynamic_moe("mixed")
    assert resolved(mixed, max_batch_size=4).max_kv_blocks == 4 * 3 * 32  # full, a window and a chunk, random blocks
    assert resolved(mixed).kv_cache.num_layers == 1

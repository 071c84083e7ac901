"""From settings, a checkpoint's config and the machine to a ResolvedConfig: every "auto" and None is settled here.

Two settings may stay "auto": what --quantization and --activations mean, each weight says as it is loaded.
Nothing is loaded or allocated: `engine.build` does that. `engine.loading.resolve` finds the model's files before.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from engine import device as devices
from engine.config import MAX_BLOCK_SIZE
from engine.errors import ConfigError
from engine.kv_cache_pool import CacheLayout
from engine.models.decoder import attention_class
from engine.retention import most_held
from kernels.resolve import KernelUnavailableError
from kernels.resolve import resolve as resolve_ops

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.loading.resolve import ModelSource
    from engine.models.config import ModelConfig
    from kernels.ops import Ops
    from kernels.packed_rows import PackedRow

logger = logging.getLogger(__name__)

_DEFAULT_BLOCK_SIZE = 16
_DEFAULT_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """All that an engine is built from: the settings as given, and what each "auto" and None of them means here.

    Attributes:
        num_kv_blocks: as set; None means as many as fit into the memory that is free after loading.
        max_kv_blocks: the most that None can mean: a full batch of whole sequences needs no more.
        activations: inputs of weights in blocks; auto means as the checkpoint says of each.
    """

    source: ModelSource
    model: ModelConfig
    device: torch.device
    dtype: torch.dtype
    ops: Ops
    threads: int
    max_seq_len: int
    max_batched_tokens: int
    kv_cache: CacheLayout
    num_kv_blocks: int | None
    max_kv_blocks: int
    activations: Literal["auto", "int8", "float"]
    settings: EngineConfig

    def __str__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {"source": self.source.path, "model": self.model.architecture, "ops": self.ops.name}
        settled = {"kernels", "kv_cache_dtype", "kv_cache_memory", "block_size"}  # the others say what came of them
        values |= self.settings.model_dump(exclude={*values, *settled})
        del values["settings"]
        return ", ".join(f"{name} {value}" for name, value in values.items())


def resolve(config: EngineConfig, source: ModelSource) -> ResolvedConfig:
    """Settle every "auto" and None, but those that each weight settles.

    Raises:
        ConfigError: a setting does not fit the model or this machine; the text says what does.
        ModelError: the checkpoint's config cannot be served.
    """
    model = source.read_config()
    device = devices.resolve_device(config.device)
    dtype = devices.resolve_dtype(config.dtype, model.dtype, device)
    try:
        ops = resolve_ops(config.kernels, device, dtype)
    except KernelUnavailableError as error:
        raise ConfigError(str(error)) from None
    if config.quantization == "int4" and (model.int8 is not None or model.packed is not None):
        raise ConfigError(
            f"--quantization is int4, and {source.path} is quantised already; valid for it are auto, which computes "
            "with the weights as they are stored, none and int8"
        )
    if config.batch_invariant == "on":
        model = _batch_invariant(model, ops, dtype)
    max_seq_len = model.resolve_max_seq_len(config.max_seq_len)
    block_size, shapes = _block_size(config, model), attention_class(model).cache_shapes(model)
    scales, packed = _cache_rows(config, model, ops, block_size)
    kv_cache = CacheLayout(shapes, model.cache_groups.num_pool_layers, block_size, dtype, scales, packed)
    max_batched_tokens = config.max_batched_tokens or max(config.max_batch_size, _DEFAULT_BATCHED_TOKENS[device.type])
    windows, num_blocks = model.cache_groups.windows(block_size), -(-max_seq_len // block_size)
    resolved = ResolvedConfig(
        source=source,
        model=model,
        device=device,
        dtype=dtype,
        ops=ops,
        threads=config.threads or devices.num_cores(),
        max_seq_len=max_seq_len,
        max_batched_tokens=max_batched_tokens,
        kv_cache=kv_cache,
        num_kv_blocks=_num_kv_blocks(config, kv_cache.bytes_per_block),
        max_kv_blocks=config.max_batch_size * most_held(windows, num_blocks, max_batched_tokens),
        activations=_activations(config),
        settings=config,
    )
    logger.info("resolved: %s", resolved)
    return resolved


def _block_size(config: EngineConfig, model: ModelConfig) -> int:
    sparse = math.gcd(*model.cache_groups.sparse_block_sizes)
    if not sparse:
        return config.block_size or _DEFAULT_BLOCK_SIZE
    valid = [size for size in range(1, min(sparse, MAX_BLOCK_SIZE) + 1) if sparse % size == 0]
    if config.block_size is None:
        usual = [size for size in valid if size <= 2 * _DEFAULT_BLOCK_SIZE]
        chosen = _DEFAULT_BLOCK_SIZE if _DEFAULT_BLOCK_SIZE in usual else usual[-1]
        if chosen % _DEFAULT_BLOCK_SIZE:
            logger.warning(
                "blocks of the KV cache have %d tokens, since sparse blocks have %d: this is slow; multiples of "
                "16 are fast",
                chosen,
                sparse,
            )
        return chosen
    if config.block_size not in valid:
        raise ConfigError(
            f"--block-size is {config.block_size}; it must divide the model's sparse blocks of {sparse} tokens: valid "
            f"are {', '.join(map(str, valid))}"
        )
    return config.block_size


def _batch_invariant(model: ModelConfig, ops: Ops, dtype: torch.dtype) -> ModelConfig:
    if ops.name != "native" or dtype is not torch.bfloat16:  # torch's products round by their number of rows
        raise ConfigError(
            f"--batch-invariant is on with --kernels {ops.name} and --dtype {str(dtype).removeprefix('torch.')}; "
            "valid with it are native and bfloat16"
        )
    if model.indexer is not None:
        raise ConfigError("--batch-invariant is on; for a model with an indexer (V3.2) only off is valid")
    return model if model.mla is None else replace(model, mla=replace(model.mla, can_expand=False))


def _cache_rows(
    config: EngineConfig, model: ModelConfig, ops: Ops, block_size: int
) -> tuple[tuple[int, ...] | None, tuple[PackedRow, ...] | None]:
    """What CacheLayout has for rows of fewer bits: the scales of int8, or the packed rows of 4 bits."""
    kind, attention = config.kv_cache_dtype, attention_class(model)
    if kind == "auto":
        return None, None
    if model.indexer is not None:
        raise ConfigError(f"--kv-cache-dtype is {kind}; for a model with an indexer (V3.2) only auto is valid")
    if not ops.reads_quantized_cache:
        raise ConfigError(
            f"--kv-cache-dtype is {kind}, which flash-attn does not read; valid with it is --kernels torch"
        )
    if kind == "int8":
        return attention.cache_scales(model), None
    if model.mla is None and block_size % 16:
        raise ConfigError(
            f"--kv-cache-dtype is int4, for which blocks must have a multiple of 16 tokens; they have {block_size} "
            "(--block-size)"
        )
    return None, attention.packed_rows(model)


def _activations(config: EngineConfig) -> Literal["auto", "int8", "float"]:
    """The default model keeps its inputs in floats: so small a model answers otherwise with int8."""
    return "float" if config.activations == "auto" and config.model is None else config.activations


def _num_kv_blocks(config: EngineConfig, bytes_per_block: int) -> int | None:
    if config.kv_cache_memory is None:
        return config.num_kv_blocks
    num_blocks = int(min(config.kv_cache_memory, 1e9) * devices.GIB) // bytes_per_block
    if num_blocks < 1:
        raise ConfigError(
            f"--kv-cache-memory is {config.kv_cache_memory} GiB; one block has {bytes_per_block / devices.GIB:.3g}"
        )
    return num_blocks

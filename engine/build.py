"""From a ResolvedConfig to a loaded and warmed-up engine.

One value is settled here: the number of KV blocks, which depends on the memory that is free after loading.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from engine import device as devices
from engine.dynamic_batcher import DynamicBatcher
from engine.engine import Engine
from engine.engine_info import MODALITIES, EngineInfo, EngineMemory
from engine.errors import ConfigError, ModelError
from engine.executor import LocalExecutor
from engine.fit import check_fits, least_kv_blocks
from engine.kv_cache_manager import KVCacheManager
from engine.loading.finite import first_not_finite
from engine.loading.name_list import name_list
from engine.loading.phases import ALLOCATING, WARMING_UP, WEIGHTS, Phases
from engine.loading.resolve import resolve_model
from engine.loading.weights import Weights
from engine.memory import keep_freed_memory
from engine.model_runner import ModelRunner
from engine.models import registry
from engine.resolve import resolve
from kernels.linear_int8 import Input

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.loading.weights import LoadFormat
    from engine.models.decoder import Decoder
    from engine.resolve import ResolvedConfig

logger = logging.getLogger(__name__)

_BLOCK_INPUTS = {"auto": None, "int8": Input.DYNAMIC, "float": Input.FLOAT}


def load_engine(config: EngineConfig, *, progress: bool = False, phases: Phases | None = None) -> Engine:
    """Find the model, resolve the settings, build; `progress` shows a bar, `phases` is told how far it is.

    Raises:
        ConfigError, ModelError: the settings or the model are at fault.
    """
    return build(resolve(config, resolve_model(config.model)), progress=progress, phases=phases)


def build(config: ResolvedConfig, *, progress: bool = False, phases: Phases | None = None) -> Engine:
    """Load the weights, size the KV cache, and compute a step so that the first request meets warm kernels.

    Raises:
        ConfigError, ModelError: the settings or the model are at fault.
    """
    started, phases = time.monotonic(), phases or Phases()
    phases.begin(WEIGHTS)
    devices.set_threads(config.threads)
    before = devices.used_bytes(config.device)
    model = _load_model(config, phases, progress=progress)
    weights = max(0, devices.used_bytes(config.device) - before)
    if config.ops.has_own_threads:
        devices.leave_cores_to_kernels()
    keep_freed_memory()
    loaded = time.monotonic()
    phases.begin(ALLOCATING)
    num_blocks = _size_kv_cache(config)
    executor = LocalExecutor(ModelRunner(model, config.kv_cache, num_blocks, config.device))
    batcher = _make_batcher(config, num_blocks)
    info, eos_token_ids = _info(config, batcher.kv_cache), frozenset(config.model.eos_token_ids)
    seed = config.settings.seed
    phases.begin(WARMING_UP)
    if not Engine(info, batcher, executor, eos_token_ids, seed).warm_up():
        raise ModelError(_why_not_finite(config))
    other = max(0, devices.used_bytes(config.device) - weights)
    memory = EngineMemory(weights, num_blocks * config.kv_cache.bytes_per_block, other)
    info = msgspec.structs.replace(info, memory=memory)
    engine = Engine(info, _make_batcher(config, num_blocks), executor, eos_token_ids, seed)  # with nothing counted yet
    logger.info(
        "loaded %s in %.1f s, warmed up in %.1f s: %s, %s, %d threads, kernels %s, "
        "max_seq_len %d, %d KV blocks of %d tokens",
        config.source.path,
        loaded - started,
        time.monotonic() - loaded,
        info.device,
        info.dtype,
        config.threads,
        config.ops.name,
        info.max_seq_len,
        num_blocks,
        info.block_size,
    )
    logger.info("memory: %s; %.2f GiB are free", memory, devices.available_bytes(config.device) / devices.GIB)
    return engine


def _load_model(config: ResolvedConfig, phases: Phases, *, progress: bool) -> Decoder:
    model, quantization = config.model, config.settings.quantization
    tensors = config.source.open_tensors(model)
    check_fits(config, tensors)
    weights = Weights(
        tensors,
        config.device,
        config.dtype,
        fp8_block=model.weight_block_size,
        progress=progress,
        tell_share=phases.share,
        int8=model.int8,
        packed=model.packed,
        fp8_layers=model.fp8,
        quantizes=functools.partial(_load_format, config),
        keeps_blocks=quantization != "none" and config.ops.keeps_blocks,
        block_input=_BLOCK_INPUTS[config.activations],
    )
    try:
        return registry.model_class(model)(model, weights, config.ops, config.max_seq_len)
    except (RuntimeError, ValueError, MemoryError) as error:  # sizes that no memory holds, or that contradict
        raise ModelError(f"{config.source.path} cannot be loaded: {str(error).partition(chr(10))[0]}") from error


def _why_not_finite(config: ResolvedConfig) -> str:
    """What is wrong with a model that computes infinities or NaN; reads its tensors again."""
    name = first_not_finite(config.source.open_tensors(config.model))
    if name is None:
        return (
            f"{config.source.path} computes values that are infinite or no numbers, though all its tensors are finite: "
            f"they are beyond {str(config.dtype).removeprefix('torch.')} (--dtype), or its config is not its own"
        )
    return f"{config.source.path} cannot be served: {name_list([name])} has values that are infinite or no numbers"


def _load_format(config: ResolvedConfig, layer: str) -> LoadFormat | None:
    """What a linear layer's weight is made at load; None leaves it as it is stored."""
    is_quantized = config.model.int8 is not None or config.model.packed is not None
    if config.settings.quantization == "int8":
        return "int8" if not is_quantized or layer == "lm_head" else None
    if config.settings.quantization == "int4":
        return "q8_0" if layer == "lm_head" else "q4_0"
    return None


def _size_kv_cache(config: ResolvedConfig) -> int:
    """The number of KV blocks, once the weights are loaded: as set, if they fit; else as many as fit."""
    least = least_kv_blocks(config)
    if config.num_kv_blocks is None:
        num_fitting = devices.default_kv_cache_bytes(config.device) // config.kv_cache.bytes_per_block
        return max(least, min(num_fitting, config.max_kv_blocks))
    if config.num_kv_blocks < least:
        raise ConfigError(
            f"a KV cache of {config.num_kv_blocks} blocks (--num-kv-blocks or --kv-cache-memory) holds no token; this "
            f"model's layers are of {least} kinds, which need a block each: at least {least}"
        )
    num_bytes, free = config.num_kv_blocks * config.kv_cache.bytes_per_block, devices.available_bytes(config.device)
    if num_bytes > free:
        raise ConfigError(
            f"a KV cache of {config.num_kv_blocks} blocks (--num-kv-blocks or --kv-cache-memory) needs "
            f"{num_bytes / devices.GIB:.4g} GiB; {free / devices.GIB:.4g} are free"
        )
    return config.num_kv_blocks


def _info(config: ResolvedConfig, kv_cache: KVCacheManager) -> EngineInfo:
    max_seq_len = kv_cache.longest(config.max_seq_len)
    if max_seq_len < config.max_seq_len:
        logger.warning(
            "the KV cache holds fewer tokens than max_seq_len %d: it is now %d", config.max_seq_len, max_seq_len
        )
    return EngineInfo(
        max_seq_len=max_seq_len,
        vocab_size=config.model.vocab_size,
        num_blocks=kv_cache.num_blocks,
        block_size=config.kv_cache.block_size,
        device=str(config.device),
        dtype=str(config.dtype).removeprefix("torch."),
        max_batch_size=config.settings.max_batch_size,
        shares_prompts=config.settings.prefix_caching == "on",
        modalities=MODALITIES[: config.model.num_modalities],
        tasks=config.model.task_heads.tasks,
        hidden_size=config.model.hidden_size,
        labels=config.model.task_heads.labels,
        label_activation=config.model.task_heads.label_activation,
    )


def _make_batcher(config: ResolvedConfig, num_blocks: int) -> DynamicBatcher:
    settings, block_size = config.settings, config.kv_cache.block_size
    kv_cache = KVCacheManager(
        num_blocks,
        block_size,
        windows=config.model.cache_groups.windows(block_size),
        max_batched_tokens=config.max_batched_tokens,
        prefix_caching=settings.prefix_caching == "on",
    )
    return DynamicBatcher(
        kv_cache,
        settings.max_batch_size,
        config.max_batched_tokens,
        policy=settings.policy,
        target_itl=None if settings.target_itl is None else settings.target_itl / 1000,
        prefill_share=settings.prefill_share,
        background_share=settings.background_share,
    )

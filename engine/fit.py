"""Whether a model fits into the memory that is free, before its tensors are read; and if not, what would fit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, get_args

from engine import device as devices
from engine.config import ModelSettings
from engine.errors import ConfigError
from engine.loading.footprint import Estimate
from engine.loading.taken_tensors import TooManyTensorsError

if TYPE_CHECKING:
    from engine.loading.footprint import Footprint
    from engine.loading.weights import TensorSource
    from engine.resolve import ResolvedConfig

logger = logging.getLogger(__name__)

_MARGIN = 0.03  # by which an estimate may be above what is free: it may be too high by as much

_WORKING = 256 << 20  # bytes that steps take beside weights and KV cache, about


def least_kv_blocks(config: ResolvedConfig) -> int:
    """Blocks of the KV cache without which nothing is computed: the first token has one in each group of layers."""
    return len(config.model.cache_groups.groups)


def check_fits(config: ResolvedConfig, tensors: TensorSource) -> None:
    """Refuse a model whose weights and KV cache need more memory than is free.

    The KV cache is as large as it was set, or else of as few blocks as there can be.

    Raises:
        ConfigError: the text says what is needed and free, and which settings need less.
    """
    chosen, free = config.settings.quantization, devices.available_bytes(config.device, with_swap=True)
    try:
        estimate = Estimate(config.model, tensors, config.ops, config.dtype)
    except TooManyTensorsError:
        return  # the load names those that are not there
    footprint = estimate.footprint(chosen)
    logger.info("estimated: weights of %.2f GiB", footprint.weights / devices.GIB)
    kv_cache = (config.num_kv_blocks or least_kv_blocks(config)) * config.kv_cache.bytes_per_block
    if _fits(needed := _needed(footprint, kv_cache), free):
        return
    text = (
        f"{config.source.path} needs {_gib(needed)} GiB; {_gib(free)} are free (weights {_gib(footprint.weights)}, "
        f"KV cache {_gib(kv_cache)})"
    )
    smallest = least_kv_blocks(config) * config.kv_cache.bytes_per_block
    if _fits(_needed(footprint, smallest), free):
        room = max(smallest, free - footprint.weights - _WORKING) / devices.GIB
        raise ConfigError(f"{text}. It fits with --kv-cache-memory {room:.3g}, or less, or fewer --num-kv-blocks")
    choices = get_args(ModelSettings.model_fields["quantization"].annotation)
    needs = {choice: _needed(estimate.footprint(choice), smallest) for choice in choices if estimate.can_load(choice)}
    raise ConfigError(f"{text}. {_advice(needs, needed, free)}")


def _advice(needs: dict[str, int], needed: int, free: int) -> str:
    """Which --quantization needs less, with the smallest KV cache."""
    less = sorted((num_bytes, choice) for choice, num_bytes in needs.items() if num_bytes < (1 - _MARGIN) * needed)
    if not less:
        return "No --quantization needs less"
    if fitting := [one for one in less if _fits(one[0], free)]:
        ways = (f"{_gib(num_bytes)} with --quantization {choice}" for num_bytes, choice in fitting)
        return f"It needs {', '.join(ways)}"
    return f"The least is {_gib(less[0][0])} with --quantization {less[0][1]}"


def _needed(footprint: Footprint, kv_cache: int) -> int:
    """The peak of the load, or what is there after it."""
    return footprint.weights + max(footprint.passing, kv_cache)


def _fits(needed: int, free: int) -> bool:
    return needed * (1 - _MARGIN) <= free


def _gib(num_bytes: int) -> str:
    return f"{round(num_bytes / devices.GIB, 4):.3g}"

"""Makes a quantised checkpoint from a model: in int8 (calibrate, choose, write), or in 4 bits (quantize_blocks)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import device as devices
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelError
from engine.loading.shards import check_free_space
from engine.quantization.calibrate import calibrate
from engine.quantization.choose import choose
from engine.quantization.output_size import output_size
from engine.quantization.quantize_blocks import SCHEMES, quantize_blocks
from engine.quantization.scheme_bits import Bits
from engine.quantization.working_memory import check_memory
from engine.quantization.write import write
from engine.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from engine.loading.resolve import ModelSource
    from engine.resolve import ResolvedConfig


def check_room(source: ModelSource, folder: Path, scheme: str, bits: Bits) -> None:
    """Refuse what memory, or the disk of this folder, which need not exist, has no room for. No tensor is read.

    Raises:
        ConfigError: there is no room; the text says how much there is.
        ModelError: the model is quantised already, or cannot be read.
    """
    resolved = _resolve(source)
    tensors = source.open_tensors(resolved.model)
    size = output_size(resolved.model, tensors, resolved.dtype, bits if scheme in SCHEMES else None)
    check_free_space(folder, size)
    if scheme in SCHEMES:
        check_memory(resolved.model, resolved.dtype, resolved.device)


def quantize(
    source: ModelSource,
    folder: Path,
    scheme: str,
    prompts: list[list[int]],
    *,
    bits: Bits | None = None,
    progress: bool,
) -> tuple[int, dict[str, float]]:
    """Write a checkpoint by a scheme into an empty folder, calibrated on these prompts.

    `bits` is for schemes of 4 bits.

    Returns:
        The size of all tensors in bytes, and shares: Recipe.shares, or of what quantize_blocks returns.

    Raises:
        ConfigError: the text is empty.
        ModelError: the model is quantised already, or cannot be read or written.
    """
    resolved = _resolve(source)
    config = resolved.model
    prompts = [prompt[: config.max_position_embeddings] for prompt in prompts]
    if not prompts:
        raise ConfigError("the calibration text has no tokens")
    devices.set_threads(resolved.threads)
    tensors = source.open_tensors(config)
    if scheme in SCHEMES:
        return quantize_blocks(
            source, tensors, config, folder, scheme, prompts, resolved.dtype, bits or Bits(), progress=progress
        )
    recipe = choose(scheme, calibrate(tensors, config, prompts, resolved.dtype, progress=progress))
    return write(folder, source, tensors, config, recipe, progress=progress), recipe.shares


def _resolve(source: ModelSource) -> ResolvedConfig:
    resolved = resolve(EngineConfig(device="cpu"), source)
    config = resolved.model
    if any(scheme is not None for scheme in (config.int8, config.packed, config.fp8)):
        raise ModelError(f"{source.path} is quantised already: layers are in compressed-tensors' formats, AWQ or GPTQ")
    return resolved

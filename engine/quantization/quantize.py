"""Makes a quantised checkpoint from a model: in int8 (calibrate, choose, write), or in 4 bits (quantize_blocks)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import device as devices
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelError
from engine.quantization.calibrate import calibrate
from engine.quantization.choose import choose
from engine.quantization.quantize_blocks import SCHEMES, quantize_blocks
from engine.quantization.scheme_bits import Bits
from engine.quantization.write import write
from engine.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from engine.loading.resolve import ModelSource


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
    resolved = resolve(EngineConfig(device="cpu"), source)
    config = resolved.model
    if any(scheme is not None for scheme in (config.int8, config.packed, config.fp8)):
        raise ModelError(f"{source.path} is quantised already: layers are in compressed-tensors' formats, AWQ or GPTQ")
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

"""Makes an int8 checkpoint from a model: calibrate, choose, write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import device as devices
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelError
from engine.quantization.calibrate import calibrate
from engine.quantization.choose import choose
from engine.quantization.write import write
from engine.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from engine.loading.resolve import ModelSource


def quantize(
    source: ModelSource, folder: Path, scheme: str, prompts: list[list[int]], *, progress: bool
) -> tuple[int, dict[str, float]]:
    """Write an int8 checkpoint by a scheme into an empty folder, calibrated on these prompts.

    Returns:
        The size of all tensors in bytes, and Recipe.shares.

    Raises:
        ConfigError: the text is empty.
        ModelError: the model is int8 already, or cannot be read or written.
    """
    resolved = resolve(EngineConfig(device="cpu"), source)
    config = resolved.model
    if config.int8 is not None or config.packed is not None:
        raise ModelError(f"{source.path} is an int8 or int4 checkpoint already")
    prompts = [prompt[: config.max_position_embeddings] for prompt in prompts]
    if not prompts:
        raise ConfigError("the calibration text has no tokens")
    devices.set_threads(resolved.threads)
    tensors = source.open_tensors(config)
    recipe = choose(scheme, calibrate(tensors, config, prompts, resolved.dtype, progress=progress))
    return write(folder, source, tensors, config, recipe, progress=progress), recipe.shares

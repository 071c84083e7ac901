"""Makes an int8 checkpoint from a model: calibrate, choose, write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import device as devices
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelError
from engine.loading.open import open_tensors
from engine.quantization.calibrate import calibrate
from engine.quantization.choose import choose
from engine.quantization.write import write
from engine.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from engine.loading.resolve import ModelSource


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        num_bytes: size of all tensors.
        shares: see Recipe.shares.
    """

    num_bytes: int
    shares: dict[str, float]


def quantize(source: ModelSource, folder: Path, scheme: str, prompts: list[list[int]], *, progress: bool) -> Report:
    """Write an int8 checkpoint into an empty folder.

    Args:
        source: the model.
        folder: where config.json, weights and the tokenizer's files are written.
        scheme: one of choose.SCHEMES.
        prompts: token ids to calibrate on.
        progress: show bars.

    Raises:
        ConfigError: the text is empty.
        ModelError: the model is int8 already, or cannot be read or written.
    """
    resolved = resolve(EngineConfig(device="cpu"), source)
    config = resolved.model
    if config.int8 is not None:
        raise ModelError(f"{source.path} is an int8 checkpoint already")
    prompts = [prompt[: config.max_position_embeddings] for prompt in prompts]
    if not prompts:
        raise ConfigError("the calibration text has no tokens")
    devices.set_threads(resolved.threads)
    tensors = open_tensors(source, config)
    recipe = choose(scheme, calibrate(tensors, config, prompts, resolved.dtype, progress=progress))
    return Report(write(folder, source, tensors, config, recipe, progress=progress), recipe.shares)

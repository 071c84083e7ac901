"""A model's own sampling defaults, from its generation_config.json: for what a request leaves out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, ModelError, RequestError
from engine.models.config_keys import read_json
from engine.protocol import SamplingParams

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
_NAMES = {  # in the file -> in SamplingParams, whose bounds are checked
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def read_defaults(choice: str, model: Path) -> dict[str, Any]:
    """Return values of fields of SamplingParams.

    Args:
        choice: as --generation-config: auto reads the model's folder, none reads nothing, all else is a folder.
        model: the model's folder, or its GGUF file, beside which no generation_config.json belongs to it.

    Raises:
        ConfigError: the folder that was chosen has no such file.
        ModelError: the file is damaged, or a value is out of its range.
    """
    if choice == "none" or (choice == "auto" and not model.is_dir()):
        return {}
    path = (model if choice == "auto" else Path(choice)) / FILE
    if not path.exists():
        if choice == "auto":
            return {}
        raise ConfigError(f"--generation-config {choice} is not auto or none, and no folder with a {FILE}")
    content = read_json(path)
    defaults = {ours: content[theirs] for theirs, ours in _NAMES.items() if content.get(theirs) is not None}
    try:
        SamplingParams(**defaults).check()
    except RequestError as error:
        raise ModelError(f"{path}: {error}; --generation-config none leaves it out") from None
    neutral = SamplingParams(max_tokens=0)  # no number of tokens is
    return {name: value for name, value in defaults.items() if value != getattr(neutral, name)}


def describe(defaults: dict[str, Any]) -> str:
    """Return the defaults in words, for the log."""
    return ", ".join(f"{name} {value}" for name, value in defaults.items())

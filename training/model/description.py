"""What a model is to be, as its config.json says: its shape for the engine, and what only training reads.

Weights are read and written in training.model.checkpoint_files. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models import registry
from engine.models.config_keys import Keys, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from engine.models.config import ModelConfig

ARCHITECTURE = "DynamicMoEForCausalLM"


@dataclass(frozen=True, slots=True)
class TrainingSizes:
    """Settings of config.json that inference does not read.

    Attributes:
        expert_capacity: an expert takes this many times its even share of a micro batch's tokens, and no more.
        hidden_dropout: share of the values that attention and experts add which is dropped.
        attention_dropout: share of attention's weights that is dropped.
    """

    expert_capacity: float = 1.25
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class ModelDescription:
    """A config.json: as it stands in the file, and as it is read."""

    raw: Mapping[str, Any]
    config: ModelConfig
    sizes: TrainingSizes

    @classmethod
    def read(cls, path: Path) -> ModelDescription:
        """Read a config.json, or that of a folder.

        Raises:
            ModelError: the file cannot be read, is of another architecture, or has a bad value; the text names the key.
        """
        return cls.parse(read_json(path / "config.json" if path.is_dir() else path))

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> ModelDescription:
        """Read the dictionary of a config.json.

        Raises:
            ModelError: naming the key and what is valid.
        """
        named = raw.get("architectures")
        if isinstance(named, list) and named != [ARCHITECTURE]:  # before another family misses keys of its own
            raise ModelError(f"architectures in config.json is {named}; only {ARCHITECTURE} is trained")
        config = registry.parse(raw, {})
        if config.architecture != ARCHITECTURE:
            raise ModelError(f"architectures in config.json is {config.architecture}; only {ARCHITECTURE} is trained")
        if config.int8 is not None:
            raise ModelError("the checkpoint's weights are int8; expected the one in floats that they were made from")
        keys = Keys(raw, "config.json")
        sizes = TrainingSizes(
            keys.number("expert_capacity", 1.25),
            keys.fraction("hidden_dropout", 0.0),
            keys.fraction("attention_dropout", 0.0),
        )
        return cls(raw, config, sizes)

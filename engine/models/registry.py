"""The families of models: which architectures each has, what reads its config.json, what builds it. Imports no torch.

A new family is its reader and its model, and one line in FAMILIES. GGUF files name architectures of the first family
(engine.models.gguf_config).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.config_keys import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from engine.models.config import ModelConfig
    from engine.models.decoder import Decoder


@dataclass(frozen=True)
class Family:
    """Architectures whose configs one module reads, and whose models one class builds.

    Attributes:
        architectures: as config.json names them.
        reader: a module with `parse(raw, generation) -> ModelConfig`.
        model: a subclass of Decoder (or itself), as "module:class"; imported where a model is built, for torch.
    """

    architectures: tuple[str, ...]
    reader: str
    model: str

    def parse(self, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
        """Translate the dictionaries of config.json and generation_config.json."""
        config: ModelConfig = import_module(self.reader).parse(raw, generation)
        return config


FAMILIES = (
    Family(
        (
            "LlamaForCausalLM",
            "LlamaForSequenceClassification",
            "DeepseekForCausalLM",
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "DeepseekV32ForCausalLM",
        ),
        "engine.models.hf_config",
        "engine.models.decoder:Decoder",
    ),
    Family(("DynamicMoEForCausalLM",), "engine.models.dynamic_moe_config", "engine.models.dynamic_moe:DynamicMoE"),
)


def read_folder(folder: Path) -> ModelConfig:
    """Read config.json, and the end-of-sequence tokens in generation_config.json if there is one."""
    generation = folder / "generation_config.json"
    return parse(read_json(folder / "config.json"), read_json(generation) if generation.exists() else {})


def parse(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Translate the dictionaries of config.json and generation_config.json with the reader of their family.

    Raises:
        ModelError: naming the key and what is valid, where possible.
    """
    architectures = raw.get("architectures")
    if not architectures:
        raise ModelError(f"config.json names no 'architectures'; supported: {', '.join(_names())}")
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ModelError(f"architectures in config.json is {architectures!r}; expected a list with a name")
    try:
        return _family(architectures[0]).parse(raw, generation)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"config.json has a value of a wrong kind: {error}") from None


def model_class(config: ModelConfig) -> type[Decoder]:
    """The class that builds this model."""
    module, _, name = _family(config.architecture).model.partition(":")
    found: type[Decoder] = getattr(import_module(module), name)
    return found


def _family(architecture: str) -> Family:
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    raise ModelError(f"architecture {architecture} is not supported yet; supported: {', '.join(_names())}")


def _names() -> list[str]:
    return [name for family in FAMILIES for name in family.architectures]

"""Which layers of a checkpoint are int8, in compressed-tensors' format (config.json's quantization_config).

llm-compressor and vLLM use this format: groups of layers, each with a scheme for weights and a scheme for inputs.
Supported are symmetric int8 weights with one scale for each channel, and inputs in 8 bits with one scale for each token
(dynamic) or for the whole tensor (static), or inputs in floats. Imports no torch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models import compressed_tensors
from engine.models.targets import Targets, read_targets

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "int-quantized"
_SUPPORTED = (
    "supported is compressed-tensors' format 'int-quantized' with symmetric int8 weights (strategy channel), and "
    "int8 inputs by token (dynamic) or by tensor (static), or none"
)
_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
_INPUTS: dict[str, dict[str, Any] | None] = {
    "static": {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "tensor", "dynamic": False},
    "dynamic": {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True},
    "float": None,
}
INPUT_KINDS = tuple(_INPUTS)


@dataclass(frozen=True)
class Int8Scheme:
    """Groups of int8 layers by kind of input.

    A target is the name of a layer, "re:" and a regular expression, or "Linear" for all other layers.

    Attributes:
        groups: (kind of input, targets); kinds are "static", "dynamic" and "float" (weight only).
        ignore: targets that are not quantised.
    """

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    ignore: tuple[str, ...] = ()

    def input_kind(self, layer: str) -> str | None:
        """The kind of a layer's input; None if the layer is not quantised."""
        return self._targets.find(layer)

    def to_config(self) -> dict[str, Any]:
        """quantization_config of config.json."""
        groups = [(targets, _WEIGHTS, _INPUTS[kind]) for kind, targets in self.groups]
        return compressed_tensors.to_config(FORMAT, groups, self.ignore)

    @functools.cached_property
    def _targets(self) -> Targets[str]:
        return Targets(self.groups, self.ignore)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Int8Scheme:
        """Read quantization_config.

        Raises:
            ModelError: the scheme is not supported.
        """
        read = [_read_group(name, group, config.get("format")) for name, group in config["config_groups"].items()]
        return cls(tuple(read), read_targets("ignore", config.get("ignore") or []))


def _read_group(name: str, group: Any, format_: Any) -> tuple[str, tuple[str, ...]]:
    where = f"quantization_config.config_groups.{name}"
    if not isinstance(group, dict):
        raise ModelError(f"{where} is {group!r}; expected an object")
    if (group_format := group.get("format") or format_) != FORMAT:
        raise ModelError(f"{where} has format {group_format!r}; {_SUPPORTED}")
    weights = group.get("weights")
    if not isinstance(weights, dict) or any(weights.get(key, value) != value for key, value in _WEIGHTS.items()):
        raise ModelError(f"{where} has weights {_short(weights)}; {_SUPPORTED}")
    if group.get("output_activations"):
        raise ModelError(f"{where} has output_activations; {_SUPPORTED}")
    inputs = group.get("input_activations")
    targets = read_targets(f"{where}.targets", group.get("targets"))
    if inputs is None:
        return "float", targets
    for kind, wanted in _INPUTS.items():
        if isinstance(inputs, dict) and wanted and {**inputs, "symmetric": False}.items() >= wanted.items():
            return kind, targets
    raise ModelError(f"{where} has input_activations {_short(inputs)}; {_SUPPORTED}")


def _short(value: Any) -> str:
    return repr({key: value.get(key) for key in _WEIGHTS} if isinstance(value, dict) else value)

"""Which layers of a checkpoint are int8, in the words of compressed-tensors (config.json's quantization_config).

That is the format of llm-compressor and of vLLM: groups of layers, each with a scheme for weights and one for inputs.
Read and written here: weights in int8, symmetric, one scale a channel; inputs in 8 bits, by a scale for each token
(dynamic) or for the whole tensor (static), or not quantised. Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "int-quantized"
_SUPPORTED = (
    "of compressed-tensors, format 'int-quantized' is read: weights int8, symmetric, strategy channel; inputs int8 by "
    "token (dynamic) or by tensor (static), or none"
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
    """Targets of each kind of input: names of layers, "re:" and a regular expression, or "Linear" for all others.

    Attributes:
        groups: (kind of input, targets); kinds are "static", "dynamic" and "float" (weight only).
        ignore: layers that stay as they are, likewise.
    """

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    ignore: tuple[str, ...] = ()

    def input_kind(self, layer: str) -> str | None:
        """How a layer treats its input; None for one that is not quantised."""
        if any(_matches(target, layer) for target in self.ignore):
            return None
        for kind, targets in self.groups:
            if any(_matches(target, layer) for target in targets):
                return kind
        return next((kind for kind, targets in self.groups if "Linear" in targets), None)

    def to_config(self) -> dict[str, Any]:
        """quantization_config of config.json."""
        groups = {
            f"group_{number}": {
                "targets": list(targets),
                "weights": _WEIGHTS,
                "input_activations": _INPUTS[kind],
                "output_activations": None,
                "format": FORMAT,
            }
            for number, (kind, targets) in enumerate(self.groups)
        }
        return {
            "quant_method": "compressed-tensors",
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Int8Scheme:
        """Read quantization_config.

        Raises:
            ModelError: it says anything that is not computed here.
        """
        for key in ("kv_cache_scheme", "transform_config"):
            if config.get(key):
                raise ModelError(f"quantization_config has a {key}; {_SUPPORTED}")
        sparsity = config.get("sparsity_config") or {}
        if sparsity and sparsity.get("format", "dense") != "dense":
            raise ModelError(f"quantization_config has sparse weights ({sparsity.get('format')!r}); {_SUPPORTED}")
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise ModelError(f"quantization_config has no config_groups; {_SUPPORTED}")
        read = [_read_group(name, group, config.get("format")) for name, group in groups.items()]
        return cls(tuple(read), _strings("ignore", config.get("ignore") or []))


def _read_group(name: str, group: Any, format_: Any) -> tuple[str, tuple[str, ...]]:
    where = f"quantization_config.config_groups.{name}"
    if not isinstance(group, dict):
        raise ModelError(f"{where} is {group!r}; expected an object")
    if (own := group.get("format") or format_) != FORMAT:
        raise ModelError(f"{where} has format {own!r}; {_SUPPORTED}")
    weights = group.get("weights")
    if not isinstance(weights, dict) or any(weights.get(key, value) != value for key, value in _WEIGHTS.items()):
        raise ModelError(f"{where} has weights {_short(weights)}; {_SUPPORTED}")
    if group.get("output_activations"):
        raise ModelError(f"{where} has output_activations; {_SUPPORTED}")
    inputs = group.get("input_activations")
    targets = _strings(f"{where}.targets", group.get("targets"))
    if inputs is None:
        return "float", targets
    for kind in ("static", "dynamic"):
        wanted = _INPUTS[kind] or {}
        if isinstance(inputs, dict) and all(
            inputs.get(key) == value for key, value in wanted.items() if key != "symmetric"
        ):
            return kind, targets
    raise ModelError(f"{where} has input_activations {_short(inputs)}; {_SUPPORTED}")


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    return str({key: value.get(key) for key in _WEIGHTS})


def _strings(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{where} is {value!r}; expected a list of names")
    for item in value:
        try:
            re.compile(item.removeprefix("re:"))
        except re.error as error:
            if item.startswith("re:"):
                raise ModelError(f"{where} has {item!r}, which is no regular expression: {error}") from None
    return tuple(value)


def _matches(target: str, layer: str) -> bool:
    """As compressed-tensors does it: a name, or an expression that matches from the start."""
    if target.startswith("re:"):
        return re.match(target[3:], layer) is not None
    return target == layer

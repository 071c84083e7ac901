"""Which layers of a checkpoint are packed in 4 or 8 bits, and how (config.json's quantization_config).

Read are compressed-tensors' formats pack-quantized (int4, and int8 in groups) and mxfp4-pack-quantized, which
llm-compressor writes, and the layouts of AWQ (gemm) and GPTQ. Their tensors are read in engine.loading. Imports no
torch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import ModelError
from engine.models.targets import Targets, read_targets

if TYPE_CHECKING:
    from collections.abc import Mapping

INT4, MXFP4 = "pack-quantized", "mxfp4-pack-quantized"
FORMATS = (INT4, MXFP4)
_ANY_ORDER = (True, "group", "dynamic")  # values of compressed-tensors' actorder with inputs of a group apart
_GROUP_SIZES = "32, 64, a multiple of 128, or -1 (one group for each row)"

Layout = Literal["compressed-tensors", "awq", "gptq", "gptq_v2"]


@dataclass(frozen=True)
class PackedGroup:
    """How some layers are stored.

    Attributes:
        group_size: inputs that share a scale; -1: all inputs.
        symmetric: whether there are no zero points.
        is_float: e2m1 values with E8M0 scales (MXFP4), not whole numbers.
        bits: of a value, 4 or 8.
        input: "dynamic" (int8) or "float".
        any_order: the inputs of a group need not be neighbours (act-order), so that blocks cannot hold them.
    """

    group_size: int
    symmetric: bool
    input: Literal["dynamic", "float"]
    is_float: bool = False
    bits: int = 4
    any_order: bool = False

    def num_groups(self, in_size: int) -> int:
        """Scales of a row of so many inputs."""
        return 1 if self.group_size == -1 else -(-in_size // self.group_size)


@dataclass(frozen=True)
class PackedScheme:
    """Layers in 4 bits: those of groups by their targets (engine.models.targets), less those to ignore."""

    layout: Layout
    groups: tuple[tuple[PackedGroup, tuple[str, ...]], ...]
    ignore: tuple[str, ...] = ()

    def group_of(self, layer: str) -> PackedGroup | None:
        """How a layer is stored; None if it is in no group."""
        return self._targets.find(layer)

    @functools.cached_property
    def _targets(self) -> Targets[PackedGroup]:
        return Targets(self.groups, self.ignore)

    @classmethod
    def from_compressed_tensors(cls, config: Mapping[str, Any]) -> PackedScheme:
        """Read quantization_config; its groups are of the formats above.

        Raises:
            ModelError: a group is not supported.
        """
        groups = [_read_group(name, group, config.get("format")) for name, group in config["config_groups"].items()]
        return cls("compressed-tensors", tuple(groups), read_targets("ignore", config.get("ignore") or []))

    @classmethod
    def from_awq(cls, config: Mapping[str, Any]) -> PackedScheme:
        """Read quantization_config of AutoAWQ.

        Raises:
            ModelError: a setting is not supported.
        """
        _expect(config, "bits", 4)
        if str(config.get("version", "gemm")).lower() != "gemm":
            raise ModelError(f"version in quantization_config is {config['version']!r}; of AWQ, 'gemm' is supported")
        _expect(config, "zero_point", True)
        group = PackedGroup(_group_size(config, "quantization_config"), symmetric=False, input="dynamic")
        return cls("awq", ((group, ("Linear",)),))

    @classmethod
    def from_gptq(cls, config: Mapping[str, Any]) -> PackedScheme:
        """Read quantization_config of AutoGPTQ or GPTQModel.

        Raises:
            ModelError: a setting is not supported.
        """
        _expect(config, "bits", 4)
        layout = config.get("checkpoint_format", "gptq")
        if config.get("is_marlin_format"):
            layout = "marlin"
        if layout not in ("gptq", "gptq_v2"):
            raise ModelError(
                f"checkpoint_format in quantization_config is {layout!r}; supported are 'gptq' and 'gptq_v2'"
            )
        any_order = bool(config.get("desc_act")) and not config.get("static_groups")
        size = _group_size(config, "quantization_config")
        group = PackedGroup(size, symmetric=False, input="dynamic", any_order=any_order)
        return cls(layout, ((group, ("Linear",)),))


def _read_group(name: str, group: Mapping[str, Any], format_: Any) -> tuple[PackedGroup, tuple[str, ...]]:
    where = f"quantization_config.config_groups.{name}"
    is_float = (group.get("format") or format_) == MXFP4
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise ModelError(f"{where}.weights is {weights!r}; expected an object")
    _expect(weights, "type", "float" if is_float else "int", f"{where}.weights")
    symmetric = bool(weights.get("symmetric", True))
    bits = weights.get("num_bits")
    if bits != 4 and (bits != 8 or is_float or not symmetric):
        raise ModelError(f"{where}.weights.num_bits is {bits!r}; supported are 4, and 8 of symmetric int")
    if (strategy := weights.get("strategy")) not in ("group", "channel"):
        raise ModelError(f"{where}.weights.strategy is {strategy!r}; supported are 'group' and 'channel'")
    size = -1 if strategy == "channel" else _group_size(weights, f"{where}.weights")
    if is_float and size != 32:
        raise ModelError(f"{where}.weights has groups of {size}; those of MXFP4 are 32")
    input_, any_order = _input(where, group.get("input_activations")), weights.get("actorder") in _ANY_ORDER
    stored = PackedGroup(size, symmetric, input_, is_float, bits, any_order)
    return stored, read_targets(f"{where}.targets", group.get("targets"))


def _input(where: str, inputs: Any) -> Literal["dynamic", "float"]:
    """int8 inputs are quantised by group, which is finer than by token; inputs of 4 or 8 bits in floats are not."""
    if inputs is None:
        return "float"
    if isinstance(inputs, dict) and inputs.get("dynamic"):
        if inputs.get("type") == "float":
            return "float"
        if inputs.get("type") == "int" and inputs.get("num_bits") == 8:
            return "dynamic"
    raise ModelError(f"{where}.input_activations is {inputs!r}; supported are dynamic int8, dynamic floats, or none")


def _group_size(config: Mapping[str, Any], where: str) -> int:
    size = config.get("group_size", 128)
    if type(size) is int and (size in (-1, 32, 64) or (size > 0 and size % 128 == 0)):
        return size
    raise ModelError(f"{where}.group_size is {size!r}; supported are {_GROUP_SIZES}")


def _expect(config: Mapping[str, Any], key: str, wanted: Any, where: str = "quantization_config") -> None:
    if config.get(key) != wanted:
        raise ModelError(f"{where}.{key} is {config.get(key)!r}; supported is {wanted!r}")

"""Which layers of a checkpoint are FP8 in compressed-tensors' format (config.json's quantization_config).

Weights are e4m3, with a scale for each channel, for the whole tensor, or for each block. Inputs stay in floats,
whatever the config makes of them: that rounds less. Imports no torch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.targets import Targets, read_targets

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "float-quantized"
_ALL = -1  # rows or columns of a block
_BLOCKS = {"channel": (1, _ALL), "tensor": (_ALL, _ALL)}  # by strategy
_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True}


@dataclass(frozen=True)
class FP8Scheme:
    """Groups of FP8 layers: the rows and columns that share a scale, and targets (engine.models.targets)."""

    groups: tuple[tuple[tuple[int, int], tuple[str, ...]], ...]
    ignore: tuple[str, ...] = ()

    def block_of(self, layer: str, shape: tuple[int, int]) -> tuple[int, int] | None:
        """The rows and columns that share a scale in a layer's weight; None if it is in no group."""
        block = self._targets.find(layer)
        if block is None:
            return None
        rows, columns = (size if length == _ALL else length for size, length in zip(shape, block, strict=True))
        return rows, columns

    @functools.cached_property
    def _targets(self) -> Targets[tuple[int, int]]:
        return Targets(self.groups, self.ignore)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FP8Scheme:
        """Read quantization_config; its groups are of the format above.

        Raises:
            ModelError: a group is not supported.
        """
        groups = [_read_group(f"quantization_config.config_groups.{name}", group)
                  for name, group in config["config_groups"].items()]  # fmt: skip
        return cls(tuple(groups), read_targets("ignore", config.get("ignore") or []))


def _read_group(where: str, group: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[str, ...]]:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict):
        raise ModelError(f"{where}.weights is {weights!r}; expected an object")
    for key, wanted in _WEIGHTS.items():
        if weights.get(key, wanted) != wanted:
            raise ModelError(f"{where}.weights.{key} is {weights[key]!r}; supported is {wanted!r}")
    if inputs is not None and (not isinstance(inputs, dict) or inputs.get("type") != "float"):
        raise ModelError(f"{where}.input_activations is {inputs!r}; supported are floats, or none")
    return _block(where, weights), read_targets(f"{where}.targets", group.get("targets"))


def _block(where: str, weights: Mapping[str, Any]) -> tuple[int, int]:
    strategy, block = weights.get("strategy"), weights.get("block_structure")
    if isinstance(strategy, str) and strategy in _BLOCKS:
        return _BLOCKS[strategy]
    if strategy != "block":
        raise ModelError(f"{where}.weights.strategy is {strategy!r}; supported are 'channel', 'tensor' and 'block'")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ModelError(f"{where}.weights.block_structure is {block!r}; expected two positive whole numbers")
    return block[0], block[1]

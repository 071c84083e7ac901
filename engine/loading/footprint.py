"""The memory that a model's weights will take, from its config and the directory of its tensors: no tensor is read.

An estimate, which tests hold within 5% of what is measured. engine.fit compares it with what is free.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.loading.taken_tensors import taken_tensors
from engine.loading.weights import StoredTensor
from kernels import native
from kernels.block_weight import FORMATS

if TYPE_CHECKING:
    import torch

    from engine.loading.taken_tensors import TakenTensor
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from kernels.block_weight import BlockFormat
    from kernels.ops import Ops

_BYTES = ("I8", "U8")  # int8, or two codes of 4 bits
_BLOCKS = {"F8_E4M3": "fp8_128", "": "int4_128"}  # by how a weight is stored; "" is in several parts
_INT8_OF_ROW = 8  # bytes beside the values of a row: a scale, and their sum
_PANEL, _TILE = 16, 64  # rows, and bytes of a row, that native weights are padded to whole ones of
_HEADS_IN_BF16 = ("amx", "avx512_bf16")  # instruction sets that multiply heads in bf16; others do so in fp32
_HEAD_ITEMSIZE = 4
_MAX_ABSENT = 1000  # tensors that a model may take and a checkpoint lack, until nothing is estimated


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory.

    Attributes:
        weights: as they stay, packed.
        passing: by which the peak of a load is above them, since a tensor is there beside what is packed of it.
    """

    weights: int
    passing: int


class Estimate:
    """The footprints of one checkpoint: as it is stored, or quantised while it is loaded."""

    def __init__(self, config: ModelConfig, source: TensorSource, ops: Ops, dtype: torch.dtype) -> None:
        """Read the directory of the tensors, and list what the model takes of them.

        Raises:
            TooManyTensorsError: the model takes many that are not there; a load names them.
        """
        self._ops, self._is_quantized = ops, config.int8 is not None or config.packed is not None
        self._packed = config.packed
        self._stored = {name: source.stored(name) for name in source.names()}
        self._taken = taken_tensors(config, dtype, 2 * len(self._stored) + _MAX_ABSENT)
        self._parts = Counter[str]()  # bytes of all tensors of a layer
        for name, stored in self._stored.items():
            self._parts[name.rpartition(".")[0]] += stored.num_bytes

    def can_load(self, quantization: str) -> bool:
        """Whether a load takes this --quantization; int4 is refused for weights that have few bits already."""
        kinds = (self._stored[taken.name].kind for taken in self._taken if taken.layer and taken.name in self._stored)
        return quantization != "int4" or (not self._is_quantized and all(map(self._becomes_int4, kinds)))

    def footprint(self, quantization: str) -> Footprint:
        """With this --quantization."""
        weights = peak = 0
        for taken in self._taken:
            weights += self._kept(taken, quantization)
            is_packed = taken.layer is not None or taken.num_in_heads > 0
            peak = max(peak, weights + (self._num_stored(taken) if is_packed else 0))
        return Footprint(weights, peak - weights)

    def _kept(self, taken: TakenTensor, quantization: str) -> int:
        """Bytes that stay of a tensor."""
        kind, num_stored = self._stored.get(taken.name, StoredTensor("", 0))
        block, itemsize = self._block(kind), taken.dtype.itemsize
        if quantization == "none" or self._has_any_order(taken.layer):
            block = None
        if taken.num_in_heads:
            return self._in_heads(taken)
        if taken.layer is None:
            is_mapped = taken.is_table and block is not None  # rows are read where they lie
            return 0 if is_mapped else math.prod(taken.shape) * itemsize
        rows, columns = taken.shape
        if quantization == "int4" and not self._is_quantized and self._becomes_int4(kind):
            made = self._block("q8_0" if taken.layer == "lm_head" else "q4_0")
            num_bytes = self._padded(rows, columns * itemsize)
            return num_bytes if made is None else rows * made.num_blocks(columns) * made.bytes
        if quantization == "int8" and (not self._is_quantized or taken.layer == "lm_head"):
            return self._padded(rows, columns) + rows * _INT8_OF_ROW
        if kind == "I8" and num_stored == rows * columns:  # not FP4, two values a byte
            return self._padded(rows, columns) + rows * _INT8_OF_ROW
        if block is None:
            return self._padded(rows, columns * itemsize)
        return max(rows * block.num_blocks(columns) * block.bytes, self._num_stored(taken))

    def _becomes_int4(self, kind: str) -> bool:
        """Whether a weight that is stored so can become int4: one in floats, or of at least a byte a value."""
        block = _format_of(kind)
        return kind not in _BYTES and (block is None or block.bytes >= block.values)

    def _has_any_order(self, layer: str | None) -> bool:
        group = self._packed.group_of(layer) if self._packed and layer else None
        return group is not None and group.any_order

    def _block(self, kind: str) -> BlockFormat | None:
        """The blocks in which a weight that is stored so stays; None if it becomes floats."""
        block = _format_of(kind) if self._ops.keeps_blocks else None
        if block is None or (self._ops.name == "native" and not native.library.has_blocks(block.name)):
            return None
        return block

    def _num_stored(self, taken: TakenTensor) -> int:
        """Bytes that are read for a tensor, with what belongs to it."""
        return self._parts[taken.layer or taken.name.rpartition(".")[0]]

    def _padded(self, num_rows: int, row_bytes: int) -> int:
        if self._ops.name != "native":
            return num_rows * row_bytes
        return -(-num_rows // _PANEL) * _PANEL * -(-row_bytes // _TILE) * _TILE

    def _in_heads(self, taken: TakenTensor) -> int:
        """What kernels.head_linear holds: views of the tensor, or native copies."""
        if self._ops.name != "native":
            return math.prod(taken.shape) * taken.dtype.itemsize
        return taken.num_in_heads * (taken.dtype.itemsize if native.ISA in _HEADS_IN_BF16 else _HEAD_ITEMSIZE)


def _format_of(kind: str) -> BlockFormat | None:
    """The format of blocks in which a weight is stored so, or of the blocks that are made of it; None of floats."""
    return FORMATS.get(_BLOCKS.get(kind, kind.lower()))

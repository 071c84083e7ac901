"""The memory that a model's weights will take, from its config and the directory of its tensors: no tensor is read.

An estimate, which tests hold within 5% of what is measured. engine.fit compares it with what is free.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.loading.taken_tensors import taken_tensors
from kernels import native
from kernels.block_weight import FORMATS

if TYPE_CHECKING:
    from engine.loading.taken_tensors import TakenTensor
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from kernels.ops import Ops

_FLOATS = ("F64", "F32", "F16", "BF16")
_FORMAT_OF = {"F8_E4M3": "fp8_128", "I32": "int4_128", "parts": "int4_128"}  # others: the block format is the kind
_INT8_OF_ROW = 8  # bytes beside a row's values: a scale, and their sum
_PANEL = 16  # rows that native weights are padded to
_TILE = 64  # bytes of a row that native weights are padded to


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory.

    Attributes:
        weights: as they stay, packed.
        passing: of the largest tensor that is there beside them while it is packed.
    """

    weights: int
    passing: int


class Estimate:
    """The footprints of one checkpoint: as it is stored, or quantised while it is loaded."""

    def __init__(self, config: ModelConfig, source: TensorSource, ops: Ops, dtype: torch.dtype) -> None:
        """Read the directory of the tensors, and list what the model takes of them."""
        self._ops, self._is_quantized = ops, config.int8 is not None or config.packed is not None
        self._taken = taken_tensors(config, dtype)
        self._stored = {name: source.stored(name) for name in source.names()}
        self._of_layer = Counter[str]()  # bytes of all that is stored of a layer's weight
        for name, stored in self._stored.items():
            if not name.endswith(".bias"):
                self._of_layer[name.rpartition(".")[0]] += stored.num_bytes

    def footprint(self, quantization: str) -> Footprint:
        """With this --quantization."""
        kept = [self._kept(taken, quantization) for taken in self._taken]
        packed = [self._num_stored(taken) for taken in self._taken if taken.layer is not None or taken.num_in_heads]
        return Footprint(sum(kept), max(packed, default=0))

    def _kept(self, taken: TakenTensor, quantization: str) -> int:
        """Bytes that stay of a tensor."""
        keeps_blocks = quantization != "none" and self._ops.keeps_blocks
        kind = self._kind(taken)
        if taken.num_in_heads:
            return taken.num_in_heads * native.head_itemsize(taken.dtype) if self._is_native else _floats(taken)
        if taken.layer is None:
            is_mapped = taken.is_table and kind in FORMATS and keeps_blocks  # its rows are read in the file
            return 0 if is_mapped else _floats(taken)
        if quantization in _AT_LOAD and (not self._is_quantized or taken.layer == "lm_head"):
            return 0
        if kind == "I8":
            return self._padded(taken, 1) + taken.shape[0] * _INT8_OF_ROW
        if kind in _FLOATS or not keeps_blocks or (block := FORMATS.get(_FORMAT_OF.get(kind, kind))) is None:
            return self._padded(taken, taken.dtype.itemsize)
        return max(taken.shape[0] * block.num_blocks(taken.shape[1]) * block.bytes, self._num_stored(taken))

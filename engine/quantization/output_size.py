"""How large a quantised checkpoint becomes, about, before anything of the model is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.loading.taken_tensors import taken_tensors
from engine.quantization.original import tensor_names
from engine.quantization.packing import GROUP
from engine.quantization.scheme_bits import FEW, MANY, Bits

if TYPE_CHECKING:
    import torch

    from engine.loading.weights import StoredTensor, TensorSource
    from engine.models.config import ModelConfig

_INT8 = 8.5  # bits: of a twentieth of the weights 16, and scales
_HEAD = "lm_head.weight"
_BF16 = 2  # bytes
_MAX_ABSENT = 1000  # tensors that a model may take and a checkpoint lack; a config that asks for more is at fault


def output_size(config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, bits: Bits | None) -> int:
    """Bytes of the tensors of a checkpoint of 4 bits, or of one in int8 without `bits`.

    Raises:
        TooManyTensorsError: the config asks for far more tensors than there are.
    """
    stored = {name: tensors.stored(name) for name in tensor_names(tensors)}
    taken = taken_tensors(config, dtype, 2 * len(tensors.names()) + _MAX_ABSENT)
    linear = {item.name: item.shape for item in taken if item.layer is not None and item.layer != "lm_head"}
    if bits is not None:
        linear = {name: shape for name, shape in linear.items() if shape[1] % GROUP == 0}
    shapes = {item.name: item.shape for item in taken}
    num_weights = sum(map(math.prod, linear.values()))
    size = sum(_size(found, shapes.get(name)) for name, found in stored.items() if name not in linear)
    if bits is None:
        return size + int(num_weights * _INT8 / 8)
    wide = bits.wide_share(num_weights)
    size += int((1 - wide) * num_weights * FEW / 8)
    if bits.wide != 8:  # wide layers stay as they are
        return size + int(wide * sum(_size(found, linear[name]) for name, found in stored.items() if name in linear))
    if _HEAD in stored:
        size -= stored[_HEAD].num_bytes
    return size + int((wide * num_weights + config.vocab_size * config.hidden_size) * MANY[8] / 8)  # and the head


def _size(stored: StoredTensor, shape: tuple[int, ...] | None) -> int:
    """Bytes of a tensor that stays in floats: as it is stored, or bf16 in place of FP8 and of a GGUF file's types."""
    if stored.kind in ("F32", "F16", "BF16", "I64") or shape is None:
        return stored.num_bytes
    return math.prod(shape) * _BF16

"""Layers in 4 bits as compressed-tensors stores them: the formats pack-quantized (int4) and mxfp4-pack-quantized.

    weight_packed      int32 [O, I / 8]: 8 codes each, the first in the lowest bits; a code is q + 8
                       int32 [O, I / 4]: 4 codes each, a code is q + 128, in a layer of 8 bits
    weight_scale       [O, G]
    weight_zero_point  int32 [O / 8, G]: packed along O, as q + 8; not in symmetric layers
    weight_shape       int64 [2]: O and I
    weight_g_idx       int [I]: the group of each input; only with actorder 'group'

MXFP4 has uint8 [O, I / 2] and E8M0 scales (engine.loading.fp4), and no more. Shapes: O rows, I inputs, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.loading import fp4, int4
from engine.loading.stored_dtypes import E8M0, FLOATS, INDICES
from kernels.linear_int8 import Input

if TYPE_CHECKING:
    from engine.loading.weights import Weights
    from engine.models.packed_scheme import PackedScheme
    from kernels.block_weight import BlockWeight


def read(
    weights: Weights, layer: str, shape: tuple[int, int], scheme: PackedScheme
) -> BlockWeight | torch.Tensor | None:
    """The weight of a layer; None if its tensors are missing or do not fit, which is noted."""
    (num_rows, in_size), group = shape, scheme.group_of(layer)
    if group is None:
        weights.fault(f"{layer}.weight_packed", "is in no group of quantization_config")
        return None
    num_groups, input_ = group.num_groups(in_size), Input(group.input)
    dtypes = E8M0 if group.is_float else FLOATS
    scale_OG = weights.take_scales(f"{layer}.weight_scale", (num_rows, num_groups), dtypes=dtypes)
    if group.is_float:
        packed = weights.take_stored(f"{layer}.weight_packed", (num_rows, in_size // 2), dtypes=(torch.uint8,))
        return None if packed is None or scale_OG is None else fp4.to_blocks(packed, scale_OG, input_)
    packed_shape = (num_rows, -(-in_size * group.bits // 32))
    packed = weights.take_stored(f"{layer}.weight_packed", packed_shape, dtypes=int4.PACKED)
    zero_point, zero_OG = None, None
    if not group.symmetric:
        zero_shape = (-(-num_rows // 8), num_groups)
        zero_point = weights.take_stored(f"{layer}.weight_zero_point", zero_shape, dtypes=int4.PACKED)
        zero_OG = None if zero_point is None else int4.unpack(zero_point, 0)[:num_rows]
    stored_shape = weights.take_stored(f"{layer}.weight_shape", (2,), dtypes=INDICES)
    if stored_shape is not None and stored_shape.tolist() != list(shape):
        weights.fault(f"{layer}.weight_shape", f"is {stored_shape.tolist()}, expected {list(shape)}")
        return None
    group_of_I = int4.take_group_indices(weights, f"{layer}.weight_g_idx", in_size, num_groups)
    if packed is None or scale_OG is None or (zero_point is None and not group.symmetric):
        return None
    if group.bits == 8:
        if group_of_I is not None:
            weights.fault(f"{layer}.weight_g_idx", "is supported in layers of 4 bits only, and this one has 8")
            return None
        return int4.to_8_bit_blocks(packed.view(torch.uint8)[:, :in_size], scale_OG, group.group_size, input_)
    codes_OI = int4.unpack(packed, 1)[:, :in_size]
    return int4.to_blocks(codes_OI, scale_OG, zero_OG, group.group_size, input_, group_of_I)

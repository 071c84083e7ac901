"""Layers in 4 bits as AutoGPTQ and GPTQModel store them.

    qweight  int32 [I / 8, O]: codes of 8 inputs each, the first in the lowest bits
    qzeros   int32 [G, O / 8]: zero points of 8 rows each; in checkpoint_format gptq less 1, in gptq_v2 as they are
    scales   [G, O]
    g_idx    int32 [I]: the group of each input; i / group_size, but for models quantised with desc_act

value = (code - zero) * scale. A layer's bias is 0 where the model has none. Shapes: O rows, I inputs, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.loading import int4
from engine.loading.stored_dtypes import FLOATS
from kernels.linear_int8 import Input

if TYPE_CHECKING:
    from engine.loading.weights import Weights
    from engine.models.packed_scheme import PackedScheme
    from kernels.block_weight import BlockWeight


def read(
    weights: Weights, layer: str, shape: tuple[int, int], scheme: PackedScheme
) -> BlockWeight | torch.Tensor | None:
    """The weight of a layer; None if its tensors are missing or do not fit, which is noted."""
    (num_rows, in_size), ((group, _),) = shape, scheme.groups
    num_groups = group.num_groups(in_size)
    packed = weights.take_stored(f"{layer}.qweight", (-(-in_size // 8), num_rows), dtypes=int4.PACKED)
    scale_GO = weights.take_scales(f"{layer}.scales", (num_groups, num_rows))
    zeros = weights.take_stored(f"{layer}.qzeros", (num_groups, -(-num_rows // 8)), dtypes=int4.PACKED)
    group_of_I = int4.take_group_indices(weights, f"{layer}.g_idx", in_size, num_groups)
    if weights.holds(f"{layer}.bias"):  # old versions write one always; a model with biases has taken its own by now
        bias_O = weights.take_stored(f"{layer}.bias", (num_rows,), dtypes=FLOATS)
        if bias_O is not None and bias_O.any():
            weights.fault(f"{layer}.bias", "is not 0, and the model has none")
            return None
    if packed is None or scale_GO is None or zeros is None:
        return None
    zero_OG = int4.unpack(zeros, 1)[:, :num_rows].T + int(scheme.layout == "gptq")
    codes_OI = int4.unpack(packed, 0)[:in_size].T.contiguous()
    return int4.to_blocks(codes_OI, scale_GO.T, zero_OG, group.group_size, Input(group.input), group_of_I)

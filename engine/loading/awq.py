"""Layers in 4 bits as AutoAWQ stores them (version gemm).

    qweight  int32 [I, O / 8]: 8 rows' codes of one input each; the codes of rows 0 to 7, from the lowest bits on, are
             those of rows 0, 2, 4, 6, 1, 3, 5, 7
    qzeros   int32 [G, O / 8]: the same of zero points
    scales   [G, O]

value = (code - zero) * scale. Shapes: O rows, I inputs, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.loading import int4
from kernels.linear_int8 import Input

if TYPE_CHECKING:
    import torch

    from engine.loading.weights import Weights
    from engine.models.packed_scheme import PackedScheme
    from kernels.block_weight import BlockWeight

_PLACE_OF_ROW = [0, 4, 1, 5, 2, 6, 3, 7]


def read(
    weights: Weights, layer: str, shape: tuple[int, int], scheme: PackedScheme
) -> BlockWeight | torch.Tensor | None:
    """The weight of a layer; None if its tensors are missing or do not fit, which is noted."""
    (num_rows, in_size), ((group, _),) = shape, scheme.groups
    num_groups = group.num_groups(in_size)
    if num_rows % 8:
        weights.fault(f"{layer}.qweight", f"has {num_rows} rows; AWQ stores multiples of 8")
        return None
    packed = weights.take_stored(f"{layer}.qweight", (in_size, -(-num_rows // 8)), dtypes=int4.PACKED)
    scale_GO = weights.take_scales(f"{layer}.scales", (num_groups, num_rows))
    zeros = weights.take_stored(f"{layer}.qzeros", (num_groups, -(-num_rows // 8)), dtypes=int4.PACKED)
    if packed is None or scale_GO is None or zeros is None:
        return None
    return int4.to_blocks(_rows(packed), scale_GO.T, _rows(zeros), group.group_size, Input(group.input))


def _rows(packed_XO: torch.Tensor) -> torch.Tensor:
    """Codes by row, uint8 [O, X]."""
    codes_XO8: torch.Tensor = int4.unpack(packed_XO, 1).unflatten(1, (-1, 8))
    return codes_XO8[:, :, _PLACE_OF_ROW].flatten(1).T.contiguous()

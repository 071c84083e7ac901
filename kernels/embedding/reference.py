"""embedding through torch's own operators, on any device. Contract: kernels.embedding."""

import torch

from kernels.block_weight import BlockWeight


def embedding(weight_VH: torch.Tensor | BlockWeight, token_ids_T: torch.Tensor) -> torch.Tensor:
    if isinstance(weight_VH, BlockWeight):
        return weight_VH.rows(token_ids_T).dequantize(torch.float32)
    return weight_VH.index_select(0, token_ids_T).float()

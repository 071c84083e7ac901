"""embedding through torch's own operators, on any device. Contract: kernels.embedding."""

import torch


def embedding(weight_VH: torch.Tensor, token_ids_T: torch.Tensor) -> torch.Tensor:
    return weight_VH.index_select(0, token_ids_T).float()

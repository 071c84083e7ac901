"""modality_embedding through torch's own operators, on any device. Contract: kernels.modality_embedding."""

import torch


def modality_embedding(
    weight_VH: torch.Tensor,
    scale_MH: torch.Tensor,
    shift_MH: torch.Tensor,
    token_ids_T: torch.Tensor,
    modality_ids_T: torch.Tensor | None,
) -> torch.Tensor:
    if modality_ids_T is None:
        modality_ids_T = torch.zeros_like(token_ids_T)
    x_TH = weight_VH.index_select(0, token_ids_T).float()
    return x_TH * (1 + scale_MH.index_select(0, modality_ids_T)) + shift_MH.index_select(0, modality_ids_T)

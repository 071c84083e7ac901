"""As a gather. Contract: kernels.take_rows."""

import torch


def take_rows(x_TX: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
    return x_TX.index_select(0, rows_R)

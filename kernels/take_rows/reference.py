"""Row by row. Contract: kernels.take_rows."""

import torch


def take_rows(x_TX: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
    return torch.stack([x_TX[row] for row in rows_R.tolist()])

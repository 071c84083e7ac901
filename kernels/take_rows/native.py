"""take_rows in native code. Contract: kernels.take_rows."""

import torch

from kernels import native


def take_rows(x_TX: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
    x_RX = x_TX.new_empty(len(rows_R), x_TX.shape[1])
    native.library.take_rows(x_TX, rows_R, x_RX)
    return x_RX

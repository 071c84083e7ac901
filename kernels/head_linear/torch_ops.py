"""head_linear as one batched product. Contract: kernels.head_linear."""

import torch

from kernels.types import HeadLinear


def head_linear(weight_NKM: torch.Tensor) -> HeadLinear:
    def apply(x_TNK: torch.Tensor, out_TNM: torch.Tensor, first: int = 0) -> None:
        weight = weight_NKM[first : first + x_TNK.shape[1]]
        out_TNM.copy_(torch.bmm(x_TNK.transpose(0, 1), weight).transpose(0, 1))

    return apply

"""head_linear, head by head, in fp32. Contract: kernels.head_linear."""

import torch

from kernels.types import HeadLinear


def head_linear(weight_NKM: torch.Tensor) -> HeadLinear:
    def apply(x_TNK: torch.Tensor, out_TNM: torch.Tensor, first: int = 0) -> None:
        for head, weight_KM in enumerate(weight_NKM[first : first + x_TNK.shape[1]]):
            out_TNM[:, head] = (x_TNK[:, head].float() @ weight_KM.float()).to(out_TNM.dtype)

    return apply

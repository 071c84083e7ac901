"""head_linear in native code, with weights packed once. Contract: kernels.head_linear."""

import torch

from kernels import native
from kernels.types import HeadLinear


def head_linear(weight_NKM: torch.Tensor) -> HeadLinear:
    return native.library.HeadLinear(weight_NKM.contiguous()).forward

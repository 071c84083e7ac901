"""head_linear in native code, with weights packed once. Contract: kernels.head_linear."""

from collections.abc import Callable

import torch

from kernels import native


def pack(weight_NKM: torch.Tensor) -> Callable[..., None]:
    return native.library.HeadLinear(weight_NKM.contiguous()).forward

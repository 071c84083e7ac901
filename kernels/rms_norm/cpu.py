"""rms_norm in native code, the addition fused. Contract: kernels.rms_norm."""

import torch

from kernels.native import FLOAT, INT, POINTER, function


class RMSNorm:
    """Both operations, bound for one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._call = function("rms_norm", dtype, POINTER, POINTER, POINTER, POINTER, INT, INT, FLOAT)

    def rms_norm(self, x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
        x_TH = x_TH.contiguous()
        y = torch.empty(x_TH.shape, dtype=self._dtype)
        is_residual = x_TH.dtype is not self._dtype
        x, residual = (None, x_TH.data_ptr()) if is_residual else (x_TH.data_ptr(), None)
        self._call(x, residual, weight_H.data_ptr(), y.data_ptr(), *x_TH.shape, eps)
        return y

    def add_rms_norm(
        self, x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float
    ) -> torch.Tensor:
        x_TH = x_TH.contiguous()
        assert residual_TH.is_contiguous()
        y = torch.empty_like(x_TH)
        residual, weight = residual_TH.data_ptr(), weight_H.data_ptr()
        self._call(x_TH.data_ptr(), residual, weight, y.data_ptr(), *x_TH.shape, eps)
        return y

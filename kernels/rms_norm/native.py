"""rms_norm in native code, the addition fused. Contract: kernels.rms_norm."""

import torch

from kernels.native import FLOAT, INT, POINTER, address, function


class RMSNorm:
    """Both operations, bound for one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._call = function("rms_norm", dtype, POINTER, INT, POINTER, POINTER, POINTER, INT, INT, FLOAT)

    def rms_norm(self, x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
        y = torch.empty(x_TH.shape, dtype=self._dtype)
        if x_TH.dtype is self._dtype:
            x, residual = _with_rows(x_TH), None
        else:
            x, residual = None, x_TH.contiguous()
        self._run(x, residual, weight_H, y, eps)
        return y

    def add_rms_norm(
        self, x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float
    ) -> torch.Tensor:
        assert residual_TH.is_contiguous()
        y = torch.empty_like(x_TH)
        self._run(_with_rows(x_TH), residual_TH, weight_H, y, eps)
        return y

    def _run(
        self,
        x: torch.Tensor | None,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        y: torch.Tensor,
        eps: float,
    ) -> None:
        stride = 0 if x is None else x.stride(0)
        self._call(address(x), stride, address(residual), weight.data_ptr(), y.data_ptr(), *y.shape, eps)


def _with_rows(x_TH: torch.Tensor) -> torch.Tensor:
    return x_TH if x_TH.stride(1) == 1 else x_TH.contiguous()

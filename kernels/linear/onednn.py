"""A linear layer on a CPU, its weight in oneDNN's blocked layout from the start. Contract: kernels.linear."""

from collections.abc import Callable

import torch

_TYPICAL_ROWS = 32  # the layout is chosen for this many tokens, and serves any number


def is_available() -> bool:
    """Whether this torch has the operators for packed weights, and this CPU computes in bf16."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _TYPICAL_ROWS)
    linear = torch.ops.mkldnn._linear_pointwise

    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = linear(x_TI, packed, bias_O, "none", [], "")
        return y

    return apply

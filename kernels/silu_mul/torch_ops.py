"""silu_mul through torch's own operators. Contract: kernels.silu_mul."""

import torch
import torch.nn.functional as F


def silu_mul(gate_up_TF2: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up_TF2.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)

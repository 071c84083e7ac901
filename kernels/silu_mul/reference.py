"""silu_mul, step by step, in fp32. Contract: kernels.silu_mul."""

import torch


def silu_mul(gate_up_TF2: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up_TF2.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up_TF2.dtype)

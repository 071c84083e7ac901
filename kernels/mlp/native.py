"""The block in native code, in one call. Contract: kernels.mlp."""

from collections.abc import Callable

import torch

from kernels import grouped_mlp
from kernels.mlp.reference import mlp as compose
from kernels.types import MLP, Layer, Projection


def mlp(
    projection: Projection,
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    gate_up: Layer,
    down: Layer,
    dtype: torch.dtype,
) -> MLP:
    """For x of one dtype: as the only expert of a mixture, where that computes in it; else composed."""
    weights = gate_up[0], down[0]
    if gate_up[1] is not None or down[1] is not None or not grouped_mlp.native.is_native(dtype, *weights):
        return compose(projection, silu_mul, gate_up, down)
    forward = grouped_mlp.native.pack_experts([weights]).forward
    return lambda x_TH, onto_TH=None: forward(x_TH, onto_TH=onto_TH)

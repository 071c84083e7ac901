"""Division of parameters, gradients and optimizer state over the data axis, by torch's FSDP2.

In a pipeline a rank gathers its stage once a step, keeps it for all micro batches, and divides the gradients at the
end: what is divided between steps is the optimizer's state and the weights (ZeRO-1). Without a pipeline each layer is
gathered when it runs and let go behind it, and its gradients are divided at once (ZeRO-3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.fsdp import FSDPModule, fully_shard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh


def shard(root: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, *, is_pipeline: bool) -> None:
    """Divide `layers`, each by itself, and what else `root` has. Gradients are summed over the axis, not averaged."""
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=not is_pipeline)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo only sums

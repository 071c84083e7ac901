"""This process among all: the device mesh of pipeline x data x tensor, and sums over its axes.

The tensor axis is the innermost, so that its ranks, which exchange most, are neighbours on one node; then data, then
pipeline. Knows nothing of models.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from training.config import ParallelismSettings

AXES = ("pipeline", "data", "tensor")
_TIMEOUT = timedelta(minutes=10)  # until a rank that waits for others takes them for dead


class Ranks:
    """All processes of a run, and this one's place.

    Attributes:
        mesh: of the axes AXES, in this order.
        degrees: how many ranks there are along each.
        pipeline, data, tensor: this rank along each.
        rank: this rank among all.
    """

    def __init__(self, degrees: ParallelismSettings, device: torch.device) -> None:
        self.degrees, self.device = degrees, device
        shape = (degrees.pipeline, degrees.data, degrees.tensor)
        self.mesh: DeviceMesh = init_device_mesh(device.type, shape, mesh_dim_names=AXES)
        self.pipeline, self.data, self.tensor = (self.mesh.get_local_rank(axis) for axis in AXES)
        self.rank = dist.get_rank()
        self._ends: dist.ProcessGroup | None = None  # made when a model needs it

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank has the embedding."""
        return self.pipeline == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the heads."""
        return self.pipeline == self.degrees.pipeline - 1

    def layers(self, num_layers: int) -> range:
        """The layers of this rank's stage, of a number that the pipeline's degree divides."""
        count = num_layers // self.degrees.pipeline
        return range(self.pipeline * count, (self.pipeline + 1) * count)

    def group(self, axis: str) -> dist.ProcessGroup:
        """The ranks that differ from this one along one axis only."""
        return self.mesh.get_group(axis)

    def ends(self) -> dist.ProcessGroup:
        """The first and the last stage of this rank's pipeline; every rank of the run calls this together."""
        if self._ends is None:
            ranks = self.mesh.mesh
            pairs = zip(ranks[0].flatten().tolist(), ranks[-1].flatten().tolist(), strict=True)
            self._ends, _ = dist.new_subgroups_by_enumeration([list(pair) for pair in pairs])
        return self._ends

    def sum(self, values: Sequence[float], axis: str | None = None) -> list[float]:
        """Sums over an axis, or over all ranks; the same on each of them."""
        return self._reduce(values, dist.ReduceOp.SUM, axis)

    def max(self, value: float) -> float:
        """The largest of all ranks' numbers."""
        return self._reduce([value], dist.ReduceOp.MAX, None)[0]

    def _reduce(self, values: Sequence[float], op: dist.ReduceOp.RedOpType, axis: str | None) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=op, group=self.group(axis) if axis else None)
        reduced: list[float] = tensor.tolist()
        return reduced


@contextmanager
def started_ranks(degrees: ParallelismSettings, device: torch.device) -> Iterator[Ranks]:
    """The process group of torchrun's processes, for as long as the context lasts."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo", timeout=_TIMEOUT, device_id=device if is_cuda else None)
    try:
        yield Ranks(degrees, device)
    finally:
        dist.destroy_process_group()

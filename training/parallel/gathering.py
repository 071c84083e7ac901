"""The whole model's parameters on the main rank, one after the other: for an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from training.parallel.ranks import Ranks


def gather(module: nn.Module, ranks: Ranks) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter that any rank has a part of. All ranks iterate to the end; only the main one gets something."""
    own = dict(module.named_parameters())
    for name, (owner, shape, dtype) in _owners(own, ranks).items():
        whole = _whole(own[name]) if name in own else None  # ranks that divide it do this together
        if ranks.rank == 0 != owner:
            whole = torch.empty(shape, dtype=dtype, device=ranks.device)
            dist.recv(whole, owner)
        elif ranks.rank == owner != 0:
            assert whole is not None
            dist.send(whole.contiguous(), 0)
        if ranks.rank == 0:
            assert whole is not None
            yield name, whole


def _owners(own: dict[str, nn.Parameter], ranks: Ranks) -> dict[str, tuple[int, torch.Size, torch.dtype]]:
    """The first rank that has a parameter, in an order that is the same on all ranks."""
    shapes = {name: (parameter.shape, parameter.dtype) for name, parameter in own.items()}
    of_all: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{}] * ranks.degrees.num_ranks
    dist.all_gather_object(of_all, shapes)
    owners: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
    for rank, of_rank in enumerate(of_all):
        for name, (shape, dtype) in of_rank.items():
            owners.setdefault(name, (rank, shape, dtype))
    return owners


@torch.no_grad()
def _whole(parameter: nn.Parameter) -> torch.Tensor:
    tensor = parameter.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    placements = list(tensor.placements)
    for axis in range(len(placements)):  # one at a time: torch warns of strided parts that it gathers over two
        placements[axis] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    whole: torch.Tensor = tensor.to_local()
    return whole

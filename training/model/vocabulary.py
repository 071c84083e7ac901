"""Tables of tokens of which this rank has some rows: the tensor axis divides the vocabulary (training.parallel.tensor).

No rank has the logits of all tokens. What a loss needs of the others' is a maximum, a sum, the target's logit, and the
sum of the gradients of hidden states.

Shapes: C rows of hidden states, V tokens of the vocabulary on this rank, H hidden.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F


class VocabularyPart:
    """The tokens of one rank, in order of ranks."""

    def __init__(self, weight_VH: DTensor) -> None:
        """`weight_VH` is divided by rows over a mesh of one axis."""
        self._mesh = weight_VH.device_mesh
        self._group = self._mesh.get_group()
        self._start = self._mesh.get_local_rank() * (weight_VH.shape[0] // self._mesh.size())

    def logsumexp(self, logits_CV: torch.Tensor) -> torch.Tensor:
        """[C]: over all tokens."""
        largest_C = logits_CV.amax(-1)
        dist.all_reduce(largest_C, op=dist.ReduceOp.MAX, group=self._group)
        sum_C = (logits_CV - largest_C[:, None]).exp_().sum(-1)
        return largest_C + self._sum(sum_C).log()

    def target_logits(self, logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        """[C]: the logit of each target, whichever rank has it."""
        own_C, is_own_C = self.own(targets_C, logits_CV.shape[1])
        return self._sum(logits_CV.gather(1, own_C[:, None])[:, 0] * is_own_C)

    def own(self, targets_C: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers of tokens among this rank's `size` (0 for others'), and which tokens are this rank's."""
        own_C = targets_C - self._start
        is_own_C = (own_C >= 0) & (own_C < size)
        return own_C * is_own_C, is_own_C

    def sum_gradients(self, grad_CH: torch.Tensor) -> torch.Tensor:
        """Over the ranks' tokens."""
        return self._sum(grad_CH)

    def all_logits(self, hidden_CH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
        """Logits of all tokens, gathered; differentiable."""
        shared = DTensor.from_local(hidden_CH, self._mesh, [Replicate()], run_check=False)
        logits = F.linear(shared.to_local(grad_placements=[Partial()]), weight_VH)
        parts = DTensor.from_local(logits, self._mesh, [Shard(1)], run_check=False)
        whole: torch.Tensor = parts.redistribute(placements=[Replicate()]).to_local()
        return whole

    def sum_parts(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of what each rank has, on each rank; differentiable."""
        parts = DTensor.from_local(part, self._mesh, [Partial()], run_check=False)
        whole: torch.Tensor = parts.redistribute(placements=[Replicate()]).to_local()
        return whole

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x, group=self._group)
        return x


def own_rows(weight_VH: torch.Tensor) -> tuple[torch.Tensor, VocabularyPart | None]:
    """The rows that this rank has, as a plain tensor with its graph, and which they are; None if they are all."""
    if isinstance(weight_VH, DTensor):
        return weight_VH.to_local(), VocabularyPart(weight_VH)
    return weight_VH, None


def look_up(table_VH: torch.Tensor, token_ids_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, H]: the row of each token, whichever rank has it."""
    rows_VH, part = own_rows(table_VH)
    if part is None:
        return F.embedding(token_ids_BT, rows_VH)
    own_BT, is_own_BT = part.own(token_ids_BT, len(rows_VH))
    return part.sum_parts(F.embedding(own_BT, rows_VH) * is_own_BT[..., None])

"""SwiGLU of rows that are sorted by expert, with its own backward pass.

Autograd's would split rows by expert and put them together again at each operation. Here an expert is two matrix
products, into its rows of one tensor, and everything else is done for the rows of all experts at once.

Shapes: X rows, H hidden, I size of an expert, J = 2 * I (gate, then up).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # gate [I, H], up [I, H], down [H, I]


def grouped_mlp(x_XH: torch.Tensor, counts: Sequence[int], experts: Sequence[Weights]) -> torch.Tensor:
    """[X, H] in the dtype of x: down(silu(gate x) * up x), the first counts[0] rows by the first expert, and so on.

    Rows after those of the last expert become 0.
    """
    weights = [weight for expert in experts for weight in expert]
    y_XH: torch.Tensor = _GroupedMLP.apply(x_XH, list(counts), *weights)  # type: ignore[no-untyped-call]
    return y_XH


class _GroupedMLP(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, x_XH: torch.Tensor, counts: list[int], *weights: torch.Tensor) -> torch.Tensor:
        in_XJ = x_XH.new_empty(len(x_XH), 2 * len(weights[0]))
        y_XH = torch.empty_like(x_XH)
        gates_up = [torch.cat(pair).to(x_XH.dtype) for pair in zip(weights[::3], weights[1::3], strict=True)]
        downs = [weight.to(x_XH.dtype) for weight in weights[2::3]]
        for rows, gate_up_JH in zip(_slices(counts), gates_up, strict=True):
            torch.mm(x_XH[rows], gate_up_JH.T, out=in_XJ[rows])
        gate_XI, up_XI = in_XJ.chunk(2, dim=-1)
        inner_XI = F.silu(gate_XI).mul_(up_XI)
        for rows, down_HI in zip(_slices(counts), downs, strict=True):
            torch.mm(inner_XI[rows], down_HI.T, out=y_XH[rows])
        y_XH[sum(counts) :] = 0
        ctx.counts, ctx.weight_dtype = counts, weights[0].dtype
        ctx.save_for_backward(x_XH, in_XJ, inner_XI, *gates_up, *downs)
        return y_XH

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_XH, in_XJ, inner_XI, *weights = ctx.saved_tensors
        counts, grad_XH = ctx.counts, grads[0]
        gates_up, downs = weights[: len(counts)], weights[len(counts) :]
        grad_inner_XI, grad_downs = torch.empty_like(inner_XI), []
        for rows, down_HI in zip(_slices(counts), downs, strict=True):
            torch.mm(grad_XH[rows], down_HI, out=grad_inner_XI[rows])
            grad_downs.append(grad_XH[rows].T @ inner_XI[rows])
        grad_in_XJ = _grad_of_inner(grad_inner_XI, in_XJ)
        grad_x_XH, grad_gates_up = torch.empty_like(x_XH), []
        for rows, gate_up_JH in zip(_slices(counts), gates_up, strict=True):
            torch.mm(grad_in_XJ[rows], gate_up_JH, out=grad_x_XH[rows])
            grad_gates_up.append(grad_in_XJ[rows].T @ x_XH[rows])
        grad_x_XH[sum(counts) :] = 0
        of_weights = []
        for grad_JH, grad_HI in zip(grad_gates_up, grad_downs, strict=True):
            of_weights += [grad.to(ctx.weight_dtype) for grad in (*grad_JH.chunk(2), grad_HI)]
        return grad_x_XH, None, *of_weights


def _grad_of_inner(grad_XI: torch.Tensor, in_XJ: torch.Tensor) -> torch.Tensor:
    """The gradient of (gate, up), given that of silu(gate) * up."""
    gate_XI, up_XI = in_XJ.chunk(2, dim=-1)
    grad_in_XJ = torch.empty_like(in_XJ)
    grad_gate_XI, grad_up_XI = grad_in_XJ.chunk(2, dim=-1)
    torch.mul(grad_XI, F.silu(gate_XI), out=grad_up_XI)
    torch.ops.aten.silu_backward.grad_input(grad_XI * up_XI, gate_XI, grad_input=grad_gate_XI)
    return grad_in_XJ


def _slices(counts: Sequence[int]) -> Iterator[slice]:
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count

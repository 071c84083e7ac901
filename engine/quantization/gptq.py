"""GPTQ (arXiv 2210.17323): rounds a weight to 4 bits so that its outputs on calibration text change least.

Columns are rounded one after another, those of the largest inputs first, and the columns that are not rounded yet make
up for each one's error. The error of a weight is |W x - W' x|^2 over the text: dW H dW^T with the inputs' H. Scales are
searched before, and fitted to the codes by least squares after.

Shapes: O rows, I inputs, G groups of inputs that share a scale, C columns at a time. Most matrices are transposed, so
that a column lies in a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.quantization.packing import GROUP, storable, to_blocks
from kernels.round_to_blocks import round_to_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels.block_weight import BlockWeight
    from kernels.quantized_weight import Input

_LOW, _HIGH = -8, 7
_DAMPING = 0.01  # of the mean of H's diagonal, added to the diagonal
_LARGEST_TOKEN = 4.0  # of the median of |x|^2: what a token counts for at most
_COLUMNS = 64  # rounded before the columns behind them make up for their errors
_ROWS = 1024  # whose scales are fitted at a time
_LEAST_IMPORTANCE = 1e-3  # of an input in the search for scales, of the mean


def hessian(inputs: Sequence[torch.Tensor], in_size: int) -> torch.Tensor:
    """H [I, I] in fp32: the mean of x x^T over the tokens of all inputs [T, I]; zeros without any.

    A token whose |x|^2 is large counts for some times the median at most. In many models a few tokens have activations
    a thousand times as large as others; but behind the next norm, their errors matter no more than those of others.
    """
    hessian_II = torch.zeros(in_size, in_size)
    sizes_T = torch.cat([torch.zeros(0), *(x_TI.float().square().sum(1) for x_TI in inputs)])
    if not len(sizes_T):
        return hessian_II
    weights_T = (_LARGEST_TOKEN * sizes_T.median() / sizes_T.clamp(min=1e-30)).clamp(max=1.0)
    for x_TI, own_T in zip(inputs, weights_T.split(list(map(len, inputs))), strict=True):
        hessian_II.addmm_(x_TI.T.float() * own_T, x_TI.float())
    return hessian_II.div_(len(sizes_T))


def working_bytes(out_size: int, in_size: int) -> int:
    """About the least memory that `hessian` and `to_4_bits` take for a weight [O, I] at their peak.

    It is that of the inverse of H, or of the codes and what they are made of. Measured were 1.0 to 1.4 times as much.
    """
    hessian, weight = 4 * in_size**2, 4 * out_size * in_size
    return max(int(6.3 * hessian), 2 * hessian + 8 * weight)


def to_4_bits(weight_OI: torch.Tensor, hessian_II: torch.Tensor, input_: Input) -> BlockWeight:
    """The weight in blocks of q4_0 with storable scales; I must be a multiple of 32.

    Without any text (H is zero) each value is rounded to the nearest.
    """
    hessian_II = _damped(hessian_II)
    weight_IO, factor = weight_OI.float().T.contiguous(), _inverse_factor(hessian_II)
    codes_IO = _round(weight_IO, _searched_scales(weight_OI, hessian_II), *factor)
    codes_IO = _round(weight_IO, _fitted_scales(weight_IO, codes_IO, hessian_II), *factor)
    scale_GO = _fitted_scales(weight_IO, codes_IO, hessian_II)
    return to_blocks(codes_IO.T, scale_GO.T, 4, input_)


def to_8_bits(weight_OI: torch.Tensor, input_: Input) -> BlockWeight:
    """The weight in blocks of q8_0 with storable scales, to the nearest; I must be a multiple of 32."""
    weight_OGV = weight_OI.float().unflatten(1, (-1, GROUP))
    scale_OG1 = storable(weight_OGV.abs().amax(2, keepdim=True) / 127)
    codes_OGV = (weight_OGV * _inverse(scale_OG1)).round_().clamp_(-127, 127)
    return to_blocks(codes_OGV.flatten(1), scale_OG1[..., 0], 8, input_)


def _damped(hessian_II: torch.Tensor) -> torch.Tensor:
    mean = float(hessian_II.diagonal().mean()) or 1.0
    return hessian_II + _DAMPING * mean * torch.eye(len(hessian_II))


def _inverse_factor(hessian_II: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper triangular U with U^T U = H^-1, its columns in this order; and the order."""
    order = hessian_II.diagonal().argsort(descending=True, stable=True)
    lower_II = torch.linalg.cholesky(hessian_II[order][:, order].flip(0, 1))
    return torch.linalg.solve_triangular(lower_II.flip(0, 1), torch.eye(len(order)), upper=True), order


def _searched_scales(weight_OI: torch.Tensor, hessian_II: torch.Tensor) -> torch.Tensor:
    """The scales [G, O] of least error if columns were rounded one by one."""
    importance_I = hessian_II.diagonal()
    importance_I = importance_I.clamp(min=_LEAST_IMPORTANCE * float(importance_I.mean()))
    made = round_to_blocks(weight_OI, "q4_0", importance_I.contiguous())
    blocks = made.rows_OB.unflatten(1, (-1, made.format.bytes))
    return storable(blocks[..., :2].contiguous().view(torch.float16)[..., 0].T)


def _fitted_scales(weight_IO: torch.Tensor, codes_IO: torch.Tensor, hessian_II: torch.Tensor) -> torch.Tensor:
    """The scales [G, O] of least error for these codes: for each row, the solution of G equations."""
    parts = zip(weight_IO.split(_ROWS, 1), codes_IO.split(_ROWS, 1), strict=True)
    return storable(torch.cat([_fit(*part, hessian_II) for part in parts], 1))


def _fit(weight_IO: torch.Tensor, codes_IO: torch.Tensor, hessian_II: torch.Tensor) -> torch.Tensor:
    in_size, out_size = weight_IO.shape
    groups = (in_size // GROUP, GROUP)
    right_GO = (codes_IO * (hessian_II @ weight_IO)).unflatten(0, groups).sum(1)
    left_OGG = torch.empty(out_size, groups[0], groups[0])
    for group in range(groups[0]):
        columns = slice(group * GROUP, (group + 1) * GROUP)
        product_IO = hessian_II[:, columns] @ codes_IO[columns]
        left_OGG[:, :, group] = (codes_IO * product_IO).unflatten(0, groups).sum(1).T
    diagonal_OG = left_OGG.diagonal(dim1=1, dim2=2)
    diagonal_OG += 1e-6 * diagonal_OG.mean(1, keepdim=True) + 1e-20  # codes that are all 0 have the scale 0
    fitted_OG: torch.Tensor = torch.linalg.solve(left_OGG, right_GO.T)
    return fitted_OG.T


def _round(
    weight_IO: torch.Tensor, scale_GO: torch.Tensor, upper_II: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """Codes [I, O] from -8 to 7, in fp32."""
    left_IO, scale_IO = weight_IO[order], scale_GO.repeat_interleave(GROUP, 0)[order]
    inverse_IO = _inverse(scale_IO)
    made_IO = torch.empty_like(left_IO)
    for first in range(0, len(order), _COLUMNS):
        columns = slice(first, min(first + _COLUMNS, len(order)))
        part_CO, upper_CC = left_IO[columns], upper_II[columns, columns]
        errors_CO = torch.empty_like(part_CO)
        for column, error_O in enumerate(errors_CO):
            codes_O = made_IO[first + column]
            torch.mul(part_CO[column], inverse_IO[first + column], out=codes_O).round_().clamp_(_LOW, _HIGH)
            torch.addcmul(part_CO[column], codes_O, scale_IO[first + column], value=-1, out=error_O)
            error_O /= upper_CC[column, column]
            part_CO[column + 1 :].addr_(upper_CC[column, column + 1 :], error_O, alpha=-1)
        left_IO[columns.stop :].addmm_(upper_II[columns, columns.stop :].T, errors_CO, alpha=-1)
    codes_IO = torch.empty_like(made_IO)
    codes_IO[order] = made_IO
    return codes_IO


def _inverse(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x == 0, 0.0, 1 / x)

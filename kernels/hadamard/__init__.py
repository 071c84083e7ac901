"""The rotation of a layer's inputs that spreads a large one over its block, so that 8 bits hold all of them better.

    rotate(x_NI, block) -> y_NI         each `block` values of a row times the Hadamard matrix of that order, in fp32

The matrix's rows are orthogonal, and their length is sqrt(block). A rotated layer's weight is rotated too, and divided
by the block's size: (H x) * (H w / block) = x * w. Every version adds in the same order, so that all give the same
bits.

Shapes: N rows of I values.
"""

import torch

from kernels import native
from kernels.hadamard import reference

__all__ = ["block_size", "reference", "rotate"]

_LARGEST, _SMALLEST = 512, 16  # blocks that the native code has; smaller ones spread too little


def block_size(in_size: int) -> int:
    """How many inputs are rotated together: the largest power of two that divides `in_size`; 1 is no rotation."""
    size = min(in_size & -in_size, _LARGEST)
    return size if size >= _SMALLEST else 1


def rotate(x_NI: torch.Tensor, block: int) -> torch.Tensor:
    """The product with the fastest version for this tensor; a block of 1 leaves the values as they are."""
    if block == 1:
        return x_NI.float()
    if native.obstacle(x_NI.device, x_NI.dtype) is None:
        return native.library.rotate(x_NI.contiguous(), block)
    return reference.rotate(x_NI, block)

"""rotate by sums and differences of pairs of values, at distances of 1, 2, 4 and so on. Contract: kernels.hadamard."""

import torch


def rotate(x_NI: torch.Tensor, block: int) -> torch.Tensor:
    size, rotated, distance = x_NI.shape[-1], x_NI.float(), 1
    while distance < block:
        first, second = rotated.reshape(len(x_NI), size // (2 * distance), 2, distance).unbind(2)
        rotated = torch.stack([first + second, first - second], 2)
        distance *= 2
    return rotated.reshape(x_NI.shape)

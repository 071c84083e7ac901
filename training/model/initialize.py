"""New weights. Each tensor's values depend on the seed and its name alone.

So a rank that has some of the layers or experts has the same weights as the whole model, without a message.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from training.model.fill import fill

if TYPE_CHECKING:
    from torch import nn

_STD = 0.02
_NOISE_STD = 0.1  # of routers


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Fill every parameter: matrices and the token embedding from a normal distribution, norms with 1, others with 0.

    Tables of modalities are 0, so that all modalities begin as the plain embedding.
    """
    for name, parameter in model.named_parameters():
        fill(parameter, _values(name, parameter.shape, seed))


def _values(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    is_noise = name.endswith("router.noise")
    if name.startswith("model.modality_") or (len(shape) == 1 and not is_noise):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator) * (_NOISE_STD if is_noise else _STD)

"""Batches of random tokens for the training form of a model."""

from __future__ import annotations

import torch

from training.batch import TokenBatch


def make_tokens(*lengths: int, seed: int = 0, num_modalities: int = 1) -> TokenBatch:
    """Rows of these lengths; padding is random too."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(256, shape, generator=generator)
    return TokenBatch(ids, torch.randint(num_modalities, shape, generator=generator), torch.tensor(lengths))

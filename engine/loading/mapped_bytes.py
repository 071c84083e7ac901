"""A part of a file that is mapped to be read, as a tensor of bytes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import mmap


def mapped_bytes(data: mmap.mmap, offset: int, num_bytes: int) -> torch.Tensor:
    """uint8 [num_bytes] that lies in the file, for as long as it is used. It must not be written."""
    raw = np.frombuffer(data, dtype=np.uint8, count=num_bytes, offset=offset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that must not be written
        return torch.from_numpy(raw)

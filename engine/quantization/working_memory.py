"""Whether there is memory for making weights of 4 bits, before anything of the model is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from engine import device as devices
from engine.errors import ConfigError
from engine.loading.taken_tensors import taken_tensors
from engine.quantization import gptq
from engine.quantization.packing import GROUP

if TYPE_CHECKING:
    import torch

    from engine.models.config import ModelConfig

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def check_memory(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model of which one decoder layer, and GPTQ of its largest weight, need more memory than is free.

    Raises:
        ConfigError: the text says what is needed and free.
    """
    layers: Counter[str] = Counter()
    largest, layer, in_size = 0, "", 0
    for item in taken_tensors(config, dtype):
        if (found := _LAYER.match(item.name)) is None:
            continue
        layers[found[1]] += math.prod(item.shape) * item.dtype.itemsize
        if item.layer is not None and item.shape[1] % GROUP == 0:
            num_bytes = gptq.working_bytes(item.shape[0], item.shape[1])
            largest, layer, in_size = max((largest, layer, in_size), (num_bytes, item.layer, item.shape[1]))
    needed, free = max(layers.values(), default=0) + largest, devices.available_bytes(device, with_swap=True)
    if needed > free:
        raise ConfigError(
            f"a scheme of 4 bits needs at least {needed / devices.GIB:.3g} GiB of memory, {largest / devices.GIB:.3g} "
            f"of them for GPTQ of {layer}, which has {in_size} inputs; {free / devices.GIB:.3g} are free. The schemes "
            "of 8 bits need memory for one decoder layer alone"
        )

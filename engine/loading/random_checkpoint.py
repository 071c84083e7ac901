"""Random checkpoints with a real model's structure, for tests, benchmarks and trials of the server.

A checkpoint has the tensors that a load takes (engine.loading.taken_tensors). Each is made and written, as many at a
time as there are cores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from engine.device import DTYPES, num_cores
from engine.errors import ConfigError
from engine.loading import fp8 as fp8_blocks
from engine.loading.shards import ShardWriter, check_free_space
from engine.loading.taken_tensors import taken_tensors
from engine.models import registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

__all__ = ["DTYPES", "write"]

_FP8_BLOCK = (128, 128)
_NOT_FP8 = (
    *("embed_tokens", "lm_head", "mlp.gate.weight", "norm", "weights_proj"),
    *("modality_", "mlp.router.", "heads."),
)
_VALUES_AT_ONCE = 1 << 18  # which a core's cache holds
_VECTOR = 16  # values that randn draws at a time: parts of whole vectors are what it draws of a whole tensor
_MOST_AT_ONCE = 8  # tensors


def write(folder: Path, config: dict[str, Any], *, dtype: torch.dtype, seed: int, fp8: bool, progress: bool) -> int:
    """Write config.json and safetensors for a config.json-like dictionary into a folder that is new or empty.

    The same seed and config give the same tensors. The routers' correction biases are always fp32. With `fp8`, linear
    layers are stored as DeepSeek-V3 does it (engine.loading.fp8), in blocks of 128 x 128. config.json is written last:
    until then the folder is no checkpoint.

    Returns:
        The number of parameters.

    Raises:
        ConfigError: the folder is not empty, or its disk has no room for the tensors.
        ModelError: the config cannot be served.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder} holds something already; name a new folder, or empty it")
    if fp8:
        quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        config = {**config, "quantization_config": {**quantization, "weight_block_size": list(_FP8_BLOCK)}}
    config = {**config, "torch_dtype": str(dtype).removeprefix("torch.")}
    tensors = _tensors_of(config, dtype, fp8=fp8)
    num_bytes = sum(tensor.num_bytes for tensor in tensors)
    check_free_space(folder, num_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    bar = {"desc": "writing", "unit": "B", "unit_scale": True, "file": sys.stderr, "leave": False}
    with ShardWriter(folder) as shards, tqdm(total=num_bytes, disable=not progress, **bar) as done:
        for made in _in_order(tensors, seed):
            for name, tensor in made.items():
                shards.add(name, tensor)
                done.update(tensor.nbytes)
        shards.finish()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return sum(math.prod(tensor.shape) for tensor in tensors)


@dataclass(frozen=True)
class _Tensor:
    """A tensor that the model takes, and how it is stored."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_fp8: bool

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        if self.is_fp8:
            return math.prod(self.shape) + 4 * math.prod(fp8_blocks.scales_shape(self.shape, _FP8_BLOCK))
        return math.prod(self.shape) * self.dtype.itemsize

    def make(self, seed: int) -> dict[str, torch.Tensor]:
        """The tensors that are stored, by name."""
        digest = hashlib.sha256(f"{seed} {self.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        made = torch.empty(self.shape, dtype=self.dtype)
        for part in _parts(made.view(-1)):
            values = torch.randn(len(part), generator=generator)
            if self.name.endswith("norm.weight"):
                values = 1 + 0.1 * values
            elif len(self.shape) == 1:
                values *= 0.1
            else:
                values *= self.shape[-1] ** -0.5  # a layer's output has the scale of its input
            part.copy_(values)
        if not self.is_fp8:
            return {self.name: made}
        values, scales = fp8_blocks.quantize(made, _FP8_BLOCK)
        return {self.name: values, f"{self.name}_scale_inv": scales}


def _parts(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    """Parts of a tensor of one dimension; the last one is no less than a vector, unless it is all."""
    stops = [*range(_VALUES_AT_ONCE, len(flat) - _VECTOR + 1, _VALUES_AT_ONCE), len(flat)]
    for first, stop in itertools.pairwise((0, *stops)):
        yield flat[first:stop]


def _tensors_of(config: dict[str, Any], dtype: torch.dtype, *, fp8: bool) -> list[_Tensor]:
    """All tensors that the model takes, in the order in which it does."""
    names = {taken.name: taken.shape for taken in taken_tensors(registry.parse(config, {}), dtype)}
    return [
        _Tensor(
            name,
            shape,
            torch.float32 if name.endswith("e_score_correction_bias") else dtype,
            fp8 and len(shape) == 2 and not any(part in name for part in _NOT_FP8),
        )
        for name, shape in names.items()
    ]


def _in_order(tensors: list[_Tensor], seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Make the tensors in threads, which run ahead by as many tensors as there are of them."""
    num_threads = min(num_cores(), _MOST_AT_ONCE)
    with ThreadPoolExecutor(num_threads) as threads:
        ahead: deque[Future[dict[str, torch.Tensor]]] = deque()
        for tensor in tensors:
            if len(ahead) == num_threads:
                yield ahead.popleft().result()
            ahead.append(threads.submit(tensor.make, seed))
        while ahead:
            yield ahead.popleft().result()

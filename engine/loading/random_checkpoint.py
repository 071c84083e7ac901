"""Random checkpoints with a real model's structure, for tests, benchmarks and trials of the server.

A decoder is built from random weights; the tensors that it takes are written. So the checkpoint has all tensors that a
load needs.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from engine.device import DTYPES
from engine.errors import ConfigError
from engine.loading import fp8 as fp8_blocks
from engine.loading.shards import ShardWriter
from engine.loading.weights import Weights
from engine.models import registry
from kernels.ops import resolve

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DTYPES", "write"]

_FP8_BLOCK = (128, 128)
_NOT_FP8 = (
    *("embed_tokens", "lm_head", "mlp.gate.weight", "norm", "weights_proj"),
    *("modality_", "mlp.router.", "heads."),
)


def write(folder: Path, config: dict[str, Any], *, dtype: torch.dtype, seed: int, fp8: bool, progress: bool) -> int:
    """Write config.json and safetensors for a config.json-like dictionary into a folder that is new or empty.

    The same seed and config give the same tensors. The routers' correction biases are always fp32. With `fp8`, linear
    layers are stored as DeepSeek-V3 does it (engine.loading.fp8), in blocks of 128 x 128.

    Returns:
        The number of parameters.

    Raises:
        ConfigError: the folder is not empty.
        ModelError: the config cannot be served.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder} holds something already; name a new folder, or empty it")
    if fp8:
        quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        config = {**config, "quantization_config": {**quantization, "weight_block_size": list(_FP8_BLOCK)}}
    config = {**config, "torch_dtype": str(dtype).removeprefix("torch.")}
    model_config = registry.parse(config, {})
    weights = _RandomWeights(dtype, seed, progress=progress)
    registry.model_class(model_config)(model_config, weights, resolve("torch", weights.device, dtype), max_seq_len=1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards = ShardWriter(folder)
    for name, tensor in weights.stored(fp8=fp8).items():
        shards.add(name, tensor)
    shards.finish()
    return sum(tensor.numel() for tensor in weights.tensors.values())


class _RandomWeights(Weights):
    """Creates each tensor that is taken, and keeps it in `tensors`."""

    def __init__(self, dtype: torch.dtype, seed: int, *, progress: bool) -> None:
        super().__init__(_NoTensors(), torch.device("cpu"), dtype, fp8_block=_FP8_BLOCK, progress=progress)
        self.tensors: dict[str, torch.Tensor] = {}
        self._seed = seed

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        values = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
        if name.endswith("norm.weight"):
            values = 1 + 0.1 * values
        elif len(shape) == 1:
            values *= 0.1
        else:
            values *= shape[-1] ** -0.5  # a layer's output has the scale of its input
        is_fp32 = name.endswith("e_score_correction_bias")
        self.tensors[name] = values.to(torch.float32 if is_fp32 else self.dtype)
        self._bar.update()
        return self.tensors[name]

    def finish(self) -> None:
        self._bar.close()

    def stored(self, *, fp8: bool) -> dict[str, torch.Tensor]:
        """The tensors as they are stored in the file."""
        if not fp8:
            return self.tensors
        stored = {}
        for name, tensor in self.tensors.items():
            if tensor.dim() != 2 or any(part in name for part in _NOT_FP8):
                stored[name] = tensor
            else:
                stored[name], stored[f"{name}_scale_inv"] = fp8_blocks.quantize(tensor, _FP8_BLOCK)
        return stored


class _NoTensors:
    """A source without tensors."""

    def names(self) -> set[str]:
        return set()

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} is read from a source without tensors")

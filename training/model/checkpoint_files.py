"""Reads a Hugging Face folder into a model, and writes one that the server serves.

Checkpoints to go on from, with the optimizer's state, are another matter (training.checkpoints).
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch

from engine.loading.safetensors_source import SafetensorsSource
from engine.loading.shards import ShardWriter
from engine.loading.weights import Weights
from training.model.dynamic_moe import DynamicMoE
from training.model.fill import fill

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from training.model.description import ModelDescription

_TOKENIZER_FILES = (
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@torch.no_grad()
def load_weights(model: DynamicMoE, folder: Path, *, heads_may_be_new: bool = False) -> list[str]:
    """Copy a folder's tensors into the parameters of the same names, whatever the dtype that they are stored in.

    Tensors that other ranks have are left alone. With `heads_may_be_new`, task heads that the folder lacks keep the
    values that they have.

    Returns:
        The names of parameters that the folder lacks.

    Raises:
        ModelError: tensors are missing, misshapen or unexpected, or a file is damaged; the text names them.
    """
    config, own = model.config, dict(model.named_parameters())
    source = SafetensorsSource(folder)
    stored = source.names()
    weights = Weights(source, torch.device("cpu"), torch.float32, fp8_block=config.weight_block_size, progress=False)
    new = []
    for name, shape in _all_shapes(model).items():
        if name not in own:
            weights.ignore(name)
        elif heads_may_be_new and name.startswith("heads.") and name not in stored:
            new.append(name)
        else:
            fill(own[name], weights.take(name, tuple(shape)))
    weights.finish()
    return new


def _all_shapes(model: DynamicMoE) -> dict[str, torch.Size]:
    """Every tensor of the whole model, of which a stage has some."""
    with torch.device("meta"):
        whole = DynamicMoE(model.config)
    return {name: parameter.shape for name, parameter in whole.named_parameters()}


def export(
    folder: Path,
    description: ModelDescription,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    tokenizer: Path | None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write config.json, generation_config.json, weights and the tokenizer's files, in place of what the folder had.

    All is written beside the folder first, so that a run that is killed leaves no half of a checkpoint. `tensors` are
    those of the whole model, by their names.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_json(partial / "config.json", _config(description, dtype))
    ends = {key: description.raw[key] for key in ("bos_token_id", "eos_token_id") if key in description.raw}
    _write_json(partial / "generation_config.json", ends)
    if tokenizer is not None:
        for path in tokenizer_files(tokenizer):
            shutil.copy(path, partial / path.name)
    with ShardWriter(partial) as shards:
        for name, tensor in tensors:
            shards.add(name, tensor.detach().to("cpu", dtype))
        shards.finish()
    _replace(folder, partial)


def tokenizer_files(folder: Path) -> set[Path]:
    """All that tokens and chat templates are read from."""
    return {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}


def _config(description: ModelDescription, dtype: torch.dtype) -> dict[str, Any]:
    config = {key: value for key, value in description.raw.items() if key not in ("dtype", "quantization_config")}
    return config | {"torch_dtype": str(dtype).removeprefix("torch.")}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _replace(folder: Path, new: Path) -> None:
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old)
    else:
        new.rename(folder)

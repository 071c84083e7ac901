"""Edits of checkpoints on disk, and the error that a load then raises."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from tests.support.running import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

WEIGHTS = "model.safetensors"


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def write_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = read_weights(folder)
    edit(tensors)
    write_weights(folder, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    """Change config.json; a value of None removes its key."""
    config = read_config(folder) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def copy(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint, with changes to its config."""
    shutil.copytree(folder, target)
    edit_config(target, changes)
    return target


def refusal(model: Path, **options: Any) -> str:
    """The text of the ModelError that a load raises."""
    with pytest.raises(ModelError) as caught:
        load(model, **options)
    return str(caught.value)

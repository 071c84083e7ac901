"""Random checkpoints: their values, their size, and what is refused before anything is written."""

import json

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import ConfigError
from engine.loading import random_checkpoint, shards
from engine.loading.presets import PRESETS

SMALL = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2}


def write(folder, like="v2-lite", *, seed=0, fp8=False, **config):
    options = {"dtype": torch.bfloat16, "seed": seed, "fp8": fp8, "progress": False}
    return random_checkpoint.write(folder, {**PRESETS[like], **SMALL, **config}, **options)


@pytest.mark.parametrize("size", [1, 15, 16, 31, 32, 47, 48, 63, 64, 79, 80, 81])
def test_values_drawn_in_parts_are_those_drawn_at_once(monkeypatch, size):
    monkeypatch.setattr(random_checkpoint, "_VALUES_AT_ONCE", 32)
    whole = torch.randn(size, generator=torch.Generator().manual_seed(3))
    parts, generator = torch.empty(size), torch.Generator().manual_seed(3)
    for part in random_checkpoint._parts(parts):
        part.copy_(torch.randn(len(part), generator=generator))
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("fp8", [False, True])
def test_the_size_is_known_before(tmp_path, monkeypatch, fp8):
    asked = []
    monkeypatch.setattr(random_checkpoint, "check_free_space", lambda folder, num_bytes: asked.append(num_bytes))
    number = write(tmp_path / "model", "v3", fp8=fp8)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert asked == [sum(tensor.nbytes for tensor in tensors.values())]
    assert number == sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("_scale_inv"))


def test_a_full_disk_is_found_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"model would have .* GB; its disk has .* GB free"):
        write(tmp_path / "model", hidden_size=1 << 17, intermediate_size=1 << 23)
    assert not (tmp_path / "model").exists()


def test_an_error_leaves_the_folder_empty_and_another_try_succeeds(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_HELD_BYTES", 100)
        patch.setattr(shards.ShardWriter, "finish", lambda self: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())
    write(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_config_json_is_the_last_file(tmp_path, monkeypatch):
    """A killed writer leaves a folder that nobody takes for a model."""
    seen = []
    finish = shards.ShardWriter.finish
    monkeypatch.setattr(
        shards.ShardWriter, "finish", lambda self: (finish(self), seen.extend(p.name for p in self._folder.iterdir()))
    )
    write(tmp_path / "model")
    assert seen == ["model.safetensors"]

"""Files of safetensors that are written tensor by tensor: what readers find, and what is left after an error."""

import json

import pytest
import torch
from safetensors.torch import load_file, save

from engine.errors import ConfigError
from engine.loading import shards
from engine.loading.shards import ShardWriter, check_free_space
from tests.support.tensor_sizes import PeakMemory


def write(folder, tensors, **options):
    with ShardWriter(folder, **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        return writer.finish()


def read(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def plain(tensors):
    """Comparable values: dtype, shape, bytes."""
    return {
        name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist())
        for name, tensor in tensors.items()
    }


@pytest.fixture
def mixed():
    """Tensors of every dtype, of odd sizes: in the order of their names few would be aligned."""
    tensors = {f"{number:02}": torch.arange(3 + 2 * number).to(dtype) for number, dtype in enumerate(shards._DTYPES)}
    return dict(sorted(tensors.items(), reverse=True)) | {"scalar": torch.tensor(5.0), "é": torch.ones(2, 3, 4)}


def test_a_small_file_is_what_safetensors_itself_writes(tmp_path, mixed):
    assert write(tmp_path, mixed) == sum(tensor.nbytes for tensor in mixed.values())
    assert (tmp_path / "model.safetensors").read_bytes() == save(mixed, metadata={"format": "pt"})


def test_a_file_that_is_written_as_tensors_come_can_be_read(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr(shards, "_HELD_BYTES", 60)
    write(tmp_path, mixed)
    assert (tmp_path / "model.safetensors").stat().st_size > shards._HEADER_ROOM
    assert plain(read(tmp_path)) == plain(mixed)


def test_several_files_have_an_index(tmp_path, mixed):
    total = write(tmp_path, mixed, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total == sum(tensor.nbytes for tensor in mixed.values())
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert (
        files
        == set(index["weight_map"].values())
        == {f"model-{n + 1:05}-of-{len(files):05}.safetensors" for n in range(len(files))}
    )
    assert len(files) > 3
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert plain(read(tmp_path)) == plain(mixed)


def test_a_file_ends_where_its_header_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_HEADER_ROOM", 800)
    monkeypatch.setattr(shards, "_HELD_BYTES", 8)
    tensors = {f"{number:0100}": torch.full((4,), float(number)) for number in range(10)}
    write(tmp_path, tensors)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert plain(read(tmp_path)) == plain(tensors)


def test_no_tensors_are_a_checkpoint_too(tmp_path):
    assert write(tmp_path, {}) == 0
    assert read(tmp_path) == {}


def test_an_error_leaves_no_file(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr(shards, "_HELD_BYTES", 60)
    writer = ShardWriter(tmp_path, shard_bytes=200)
    for name, tensor in mixed.items():
        writer.add(name, tensor)
    assert len(list(tmp_path.iterdir())) > 1
    writer.__exit__(KeyboardInterrupt, None, None)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_leaves_is_no_checkpoint(tmp_path, mixed):
    writer = ShardWriter(tmp_path, shard_bytes=100)
    for name, tensor in mixed.items():
        writer.add(name, tensor)
    assert list(tmp_path.iterdir())
    assert not list(tmp_path.glob("*.safetensors*"))


def test_only_the_newest_tensors_are_in_memory(tmp_path):
    with PeakMemory() as peak, ShardWriter(tmp_path) as writer:
        for number in range(16):
            writer.add(str(number), torch.ones(4 << 20))
        writer.finish()
    assert peak.bytes < 90e6  # of 268 MB


@pytest.mark.parametrize("folder", [".", "new", "new/deep"])
def test_a_disk_without_room_is_refused_with_what_it_has(tmp_path, folder):
    check_free_space(tmp_path / folder, 1000)
    with pytest.raises(ConfigError, match=r"would have 1e\+09 GB; its disk has .* GB free"):
        check_free_space(tmp_path / folder, 10**18)

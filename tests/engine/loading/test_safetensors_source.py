"""Folders of safetensors: sharded or not, damaged, pickled, without weights."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import ModelError
from engine.loading import safetensors_source
from engine.loading.weights import StoredTensor
from tests.support import checkpoints, tiny
from tests.support.checkpoints import WEIGHTS
from tests.support.running import generate, greedy_params, load, make_prompt

INDEX = "model.safetensors.index.json"
TIB = 1 << 40


def split_header(content):
    """A file's header and its tensors."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join_header(header, tensors):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def test_a_sharded_checkpoint_gives_the_same_as_one_file(tiny_llama, tmp_path):
    tiny.reference(tiny_llama).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (tmp_path / INDEX).exists()
    prompt = make_prompt(20)
    (sharded,), (whole,) = (generate(load(folder), [prompt], greedy_params(32)) for folder in (tmp_path, tiny_llama))
    assert sharded == whole


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_reason(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    message = checkpoints.refusal(folder)
    assert "has no .safetensors files" in message
    assert f"{name} is a pickle, which could run code" in message


def test_a_folder_without_weights_is_refused(folder):
    (folder / WEIGHTS).unlink()
    assert checkpoints.refusal(folder).endswith("has no .safetensors files")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, -1])
def test_damaged_safetensors_are_refused(folder, keep):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:keep])
    assert f"{WEIGHTS} cannot be read" in checkpoints.refusal(folder)


def test_a_file_that_a_limit_forbids_to_map_is_named(folder, monkeypatch):
    def safe_open(*_, **__):
        raise MemoryError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr(safetensors_source, "safe_open", safe_open)
    message = checkpoints.refusal(folder)
    assert f"{WEIGHTS} cannot be read: " in message
    assert "GiB of address space are needed to map it" in message


@pytest.mark.filterwarnings("error")
def test_a_file_can_be_larger_than_memory(folder):
    expected = {name: tensor.clone() for name, tensor in checkpoints.read_weights(folder).items()}
    header, tensors = split_header((folder / WEIGHTS).read_bytes())
    header["large"] = {
        "dtype": "F8_E4M3",
        "shape": [1 << 30, 1 << 10],
        "data_offsets": [len(tensors), len(tensors) + TIB],
    }
    content = join_header(header, tensors)
    (folder / WEIGHTS).write_bytes(content)
    os.truncate(folder / WEIGHTS, len(content) + TIB)
    source = safetensors_source.SafetensorsSource(folder)
    assert source.stored("large") == StoredTensor("F8_E4M3", TIB)
    for name, tensor in expected.items():
        assert source.read(name).equal(tensor)


def test_every_dtype_of_a_file_is_read_where_it_lies(tmp_path):
    values = {
        str(dtype): torch.arange(1, 8).to(dtype)
        for dtype in safetensors_source._DTYPES.values()
        if dtype != torch.float8_e8m0fnu  # of powers of two
    }
    values |= {"none": torch.empty(0, 3), "scalar": torch.tensor(5.0), "byte": torch.tensor([7], dtype=torch.uint8)}
    save_file(values, tmp_path / WEIGHTS)
    source = safetensors_source.SafetensorsSource(tmp_path)
    assert source.names() == set(values)
    for name, expected in values.items():
        found = source.read(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.reshape(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8))
        assert source.stored(name).num_bytes == expected.nbytes


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": []}, "has no weight_map"),
        ({"weight_map": {"a": 5}}, "lacks shards that its index names: 5"),
        (
            {"weight_map": {"a": WEIGHTS, "b": "model-00002-of-00003.safetensors"}},
            "names: model-00002-of-00003.safeten",
        ),
        ({"weight_map": {"a": "x" * 5000}}, "lacks shards that its index names: xxx"),
        ({"weight_map": {"a": "../b"}}, "names a shard outside the folder: ../b"),
    ],
    ids=str,
)
def test_an_index_that_does_not_fit_is_refused(folder, index, message):
    shutil.copy(folder / WEIGHTS, folder.parent / "b")
    (folder / INDEX).write_text(json.dumps(index))
    assert message in checkpoints.refusal(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    assert "other.safetensors has tensors that another file of the folder has too: " in checkpoints.refusal(folder)


def test_a_dtype_that_torch_has_not_is_refused_by_name(folder):
    header, tensors = split_header((folder / WEIGHTS).read_bytes())
    header["odd"] = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [len(tensors), len(tensors) + 3]}
    (folder / WEIGHTS).write_bytes(join_header(header, tensors + bytes(3)))
    source = safetensors_source.SafetensorsSource(folder)
    with pytest.raises(ModelError, match="odd cannot be read"):
        source.read("odd")

"""Folders of safetensors: sharded or not, damaged, pickled, without weights."""

import json
import shutil

import pytest

from engine.errors import ModelError
from engine.loading import safetensors_source
from tests.support import checkpoints, tiny
from tests.support.checkpoints import WEIGHTS
from tests.support.running import generate, greedy_params, load, make_prompt

INDEX = "model.safetensors.index.json"


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
        raise RuntimeError("unable to mmap 4293440520 bytes from file: Cannot allocate memory (12)")

    monkeypatch.setattr(safetensors_source, "safe_open", safe_open)
    assert f"{WEIGHTS} cannot be read: unable to mmap" in checkpoints.refusal(folder)


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
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["odd"] = {
        "dtype": "F6_E2M3",
        "shape": [4],
        "data_offsets": [len(content) - 8 - size, len(content) - 5 - size],
    }
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :] + bytes(3))
    source = safetensors_source.SafetensorsSource(folder)
    with pytest.raises(ModelError, match="odd cannot be read"):
        source.read("odd")

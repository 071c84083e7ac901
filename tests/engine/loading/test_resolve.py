"""Which model a name stands for: a folder, a GGUF file of any spelling; a folder of GGUF files is none."""

import shutil

import pytest

from engine.errors import ModelError
from engine.loading.resolve import resolve_model


@pytest.mark.parametrize(
    "names", [("a.gguf",), ("b.GGUF", "a.gguf"), ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf")]
)
def test_a_folder_of_gguf_files_is_refused_with_their_names(tmp_path, names):
    for name in (*names, "config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError) as caught:
        resolve_model(tmp_path)
    expected = ", ".join(sorted(name for name in names if "-00002-" not in name))
    assert str(caught.value).endswith(
        f"has GGUF files and no .safetensors files; name one of its GGUF files: {expected}"
    )


def test_a_gguf_file_beside_safetensors_is_left_alone(tmp_path):
    for name in ("a.gguf", "model.safetensors"):
        (tmp_path / name).touch()
    assert resolve_model(tmp_path).path == tmp_path


def test_an_ending_in_capitals_is_the_same(tiny_gguf, tmp_path):
    shutil.copy(tiny_gguf, tmp_path / "X.GGUF")
    source = resolve_model(tmp_path / "X.GGUF")
    assert (source.name, source.is_gguf) == ("X", True)
    assert source.read_config() == resolve_model(tiny_gguf).read_config()

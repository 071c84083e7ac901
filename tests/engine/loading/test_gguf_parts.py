"""GGUF files that are split: all parts are read; what is no first part, or lacks another, is refused with advice."""

import shutil

import pytest
from gguf import GGMLQuantizationType as Kind

from engine.errors import ModelError
from engine.loading.gguf_parts import open_parts
from engine.loading.resolve import resolve_model
from server.text.tokenizer import Tokenizer
from tests.support import checkpoints
from tests.support.gguf_writer import write_gguf
from tests.support.running import generate, greedy_params, load, make_prompt

FIRST, SECOND, THIRD = (f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3))


@pytest.fixture
def parts(tiny_llama, tmp_path):
    """A folder with a file in three parts."""
    write_gguf(tiny_llama, tmp_path / "model.gguf", Kind.Q8_0, most_in_part=12)
    assert {path.name for path in tmp_path.iterdir()} == {FIRST, SECOND, THIRD}
    return tmp_path


def test_the_first_part_stands_for_all(parts, tiny_llama, tmp_path):
    write_gguf(tiny_llama, tmp_path / "whole.gguf", Kind.Q8_0)
    source = resolve_model(parts / FIRST)
    assert source.name == "model"
    whole = resolve_model(tmp_path / "whole.gguf")
    assert source.read_config() == whole.read_config()
    (found,), (expected,) = (
        generate(load(model.path), [make_prompt(20)], greedy_params(16)) for model in (source, whole)
    )
    assert found == expected


@pytest.mark.parametrize("name", [SECOND, THIRD])
def test_another_part_is_refused_with_what_to_name(parts, name):
    for read in (lambda source: source.read_config(), Tokenizer.load):
        with pytest.raises(ModelError, match=r"not the first part of .* split in 3.*model-00001-of-.*--merge"):
            read(resolve_model(parts / name))


def test_a_part_that_is_absent_is_named(parts):
    (parts / THIRD).unlink()
    assert f"is one of 3 parts; there is no {THIRD} beside it; name the first" in checkpoints.refusal(parts / FIRST)


def test_a_renamed_part_is_refused(parts):
    (parts / FIRST).rename(parts / "other.gguf")
    assert "other.gguf is not the first part of a GGUF file" in checkpoints.refusal(parts / "other.gguf")


def test_parts_that_do_not_fit_are_refused(parts, tiny_llama, tmp_path):
    (parts / "kept").write_bytes((parts / SECOND).read_bytes())
    shutil.copy(parts / THIRD, parts / SECOND)
    assert f"{SECOND} is not part 2 of 3, as its name says" in checkpoints.refusal(parts / FIRST)
    (parts / "kept").rename(parts / SECOND)
    (tmp_path / "others").mkdir()
    write_gguf(tiny_llama, tmp_path / "others" / "model.gguf", Kind.Q8_0, most_in_part=11)
    shutil.copy(tmp_path / "others" / SECOND, parts / SECOND)
    assert f"{SECOND} has tensors that another part has too: " in checkpoints.refusal(parts / FIRST)
    shutil.copy(tmp_path / "others" / FIRST, parts / FIRST)
    shutil.copy(parts / "others" / SECOND, parts / SECOND)
    assert " tensors, expected " in checkpoints.refusal(parts / FIRST)


@pytest.mark.parametrize("count", ["3", [1, 2], 2.5, 70000])
def test_a_count_that_is_none_is_refused(tiny_llama, tmp_path, count):
    path = tmp_path / FIRST
    write_gguf(tiny_llama, path, split__count=count, split__no=0)
    with pytest.raises(ModelError, match="is not the first part"):
        open_parts(path)

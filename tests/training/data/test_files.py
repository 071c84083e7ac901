"""training.data.files: which files are data."""

import os
from pathlib import Path

import pytest

from training.data.files import find_files
from training.errors import TrainingError


def test_a_folder_gives_its_data_in_order_and_passes_over_the_rest(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt", "inner/c.MD", "picture.png", "inner/.d.ndjson"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    names = [str(file.path.relative_to(tmp_path)) for file in find_files([tmp_path])]
    assert names == ["a.txt", "b.jsonl", "inner/.d.ndjson", "inner/c.MD"]


def test_files_keep_their_order_and_may_be_named_twice(tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.txt"
    one.write_text("{}")
    two.write_text("")
    files = find_files([two, one, str(one)])
    assert [file.path for file in files] == [two, one, one]
    assert [file.has_records for file in files] == [False, True, True]
    assert [file.size for file in files] == [0, 2, 2]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.jsonl", lambda path: None, "missing.jsonl cannot be read: No such file"),
        ("a\0b.jsonl", lambda path: None, "cannot be read: embedded null byte"),
        ("pipe.jsonl", os.mkfifo, "is no regular file"),
        ("table.csv", lambda path: path.write_text("x"), "none of the known endings; expected records"),
        ("folder", lambda path: path.mkdir(), "has no data"),
        ("empty.txt", lambda path: path.write_text(""), "the data is empty"),
        ("secret.txt", lambda path: (path.write_text("x"), path.chmod(0)), "permission denied"),
    ],
)
def test_what_is_no_data_is_named(tmp_path: Path, name: str, make, message: str) -> None:
    path = tmp_path / name
    make(path)
    if name == "secret.txt" and os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(TrainingError, match=message):
        find_files([path])


def test_a_name_that_cannot_be_printed_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        find_files([tmp_path / "a\nb.txt", tmp_path / os.fsdecode(b"a\xff.txt")])
    assert str(caught.value).isprintable()
    with pytest.raises(TrainingError) as caught:
        find_files([tmp_path / os.fsdecode(b"a\xff.txt")])
    assert str(caught.value).isprintable()

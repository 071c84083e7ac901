"""training.data.chunks: every record and every byte of a text in exactly one chunk, whatever the chunks' size."""

import random
from pathlib import Path

import pytest

from training.data.chunks import Chunks, read_lines, read_text
from training.data.files import find_files


def _chunks(path: Path, size: int) -> Chunks:
    return Chunks(find_files([path]), size)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_each_line_is_in_one_chunk(tmp_path: Path, size: int, end: bytes) -> None:
    draw = random.Random(size)
    lines = [b"%d" % number + b"x" * draw.choice([0, 1, 5, 90]) for number in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    chunks = _chunks(path, size)
    read = [line for number in range(len(chunks)) for line in read_lines(chunks[number], chunks[number].start, 1000)]
    assert [line.rstrip(b"\n") for _, line in read if line is not None] == lines
    assert all(path.read_bytes()[at:].startswith(line) for at, line in read if line is not None)


def test_reading_goes_on_at_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\nthree\n")
    chunk = _chunks(path, 100)[0]
    assert list(read_lines(chunk, 4, 100)) == [(4, b"two\n"), (8, b"three\n")]


@pytest.mark.parametrize("size", [3, 50, 1000])
def test_a_line_over_the_limit_is_told_once_and_the_next_is_found(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"before\n" + b"x" * 200 + b"\nbehind\n" + b"y" * 10 + b"\n" + b"z" * 11)
    chunks = _chunks(path, size)
    read = [line for number in range(len(chunks)) for _, line in read_lines(chunks[number], chunks[number].start, 10)]
    assert read == [b"before\n", None, b"behind\n", b"y" * 10 + b"\n", None]


def test_a_file_that_became_shorter_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\nthree\n")
    chunk = _chunks(path, 100)[0]
    path.write_bytes(b"one\n")
    assert list(read_lines(chunk, 0, 100)) == [(0, b"one\n")]


@pytest.mark.parametrize("size", [1, 3, 40, 10_000])
@pytest.mark.parametrize(
    "text", ["ä€😀" * 50, "a b\n\nc d\r\n\r\ne\n" * 30, "word " * 100], ids=["no marks", "lines", "words"]
)
def test_the_pieces_of_a_text_are_the_text(tmp_path: Path, size: int, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    chunks = _chunks(path, size)
    pieces = [read_text(chunks[number]).decode() for number in range(len(chunks))]  # each valid UTF-8
    assert "".join(pieces) == text


def test_a_text_is_cut_between_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("First line.\nSecond line.\n\nNext paragraph.\n")
    chunks = _chunks(path, 20)
    assert [read_text(chunks[number]) for number in range(2)] == [
        b"First line.\nSecond line.\n\n",
        b"Next paragraph.\n",
    ]


def test_chunks_of_several_files_are_numbered_through(tmp_path: Path) -> None:
    sizes = {"a.txt": 10, "b.txt": 0, "c.txt": 1, "d.txt": 35}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    chunks = _chunks(tmp_path, 10)
    ranges = [(chunks[i].file.path.name, chunks[i].start, chunks[i].stop) for i in range(len(chunks))]
    assert ranges == [("a.txt", 0, 10), ("c.txt", 0, 1), ("d.txt", 0, 11), ("d.txt", 11, 23), ("d.txt", 23, 35)]

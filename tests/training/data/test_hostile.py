"""Data that would fill memory or take forever: a result or one error, in bounded memory and time."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from training.data import BatchStream, batches, documents
from training.errors import TrainingError


@pytest.fixture
def peak():
    """peak() -> the most MiB that Python held since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / (1 << 20)
    tracemalloc.stop()


def _sparse(path: Path, size: int, end: bytes = b"") -> Path:
    """A file of NULs, which takes no place on disk."""
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(end)
    return path


def test_a_line_of_64_mb_is_passed_over(byte_tokenizer, tmp_path: Path, write, peak) -> None:
    _sparse(tmp_path / "long.jsonl", 64 << 20, b'\n{"text": "behind"}\n')
    write("short.jsonl", [{"text": "abc"}])
    stream = BatchStream([tmp_path], byte_tokenizer, max_length=16, micro_batch_size=1, epochs=1)
    assert len(list(stream)) == 2
    assert stream.bad.counts == {"too long": 1}
    assert peak() < 40


def test_a_text_of_nuls_is_an_error(byte_tokenizer, tmp_path: Path, peak) -> None:
    _sparse(tmp_path / "nul.txt", 16 << 20)
    with pytest.raises(TrainingError, match="not text"):
        next(BatchStream([tmp_path], byte_tokenizer))
    assert peak() < 4


def test_a_long_record_is_used(tokenizer, write) -> None:
    path = write("a.jsonl", [{"text": "the river runs under a bridge\n" * 10_000}])
    rows = list(BatchStream([path], tokenizer, max_length=4096, micro_batch_size=1, epochs=1))
    assert sorted(int(row.tokens.lengths_B) for row in rows)[1:] == [4096] * (len(rows) - 1)
    cut = BatchStream([path], tokenizer, micro_batch_size=1, long_documents="cut", epochs=1)
    assert [batch.tokens.lengths_B.tolist() for batch in cut] == [[4096]]


def test_a_record_over_the_limit_is_counted(byte_tokenizer, write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_LINE", 1 << 20)
    path = write("a.jsonl", [{"text": "x" * (1 << 20)}, {"text": "abc"}])
    stream = BatchStream([path], byte_tokenizer, micro_batch_size=1, epochs=1)
    assert len(list(stream)) == 1
    assert "1 MiB" in stream.bad.named[0]


def test_files_in_other_encodings_beside_good_ones(byte_tokenizer, tmp_path: Path, write) -> None:
    (tmp_path / "latin.txt").write_text("é" * 50, encoding="latin-1")
    (tmp_path / "wide.txt").write_text("text" * 50, encoding="utf-16")
    (tmp_path / "wide.jsonl").write_text('{"text": "a"}\n' * 3, encoding="utf-16-le")
    (tmp_path / "gzip.jsonl").write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(256)))
    write("good.jsonl", [{"text": "abc"}, {"text": "de"}])
    stream = BatchStream([tmp_path], byte_tokenizer, micro_batch_size=1, epochs=1)
    assert sum(1 for _ in stream) == 2
    assert stream.bad.counts["not text"] == 1
    assert stream.bad.counts["not UTF-8"] >= 1


def test_a_long_chat_takes_bounded_time(tokenizer, write) -> None:
    messages = [{"role": "system", "content": "x " * 500_000}]
    messages += [{"role": role, "content": "a"} for role in ("user", "assistant") * 500]
    short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write("a.jsonl", [{"messages": messages}, {"messages": short}])
    stream = BatchStream([path], tokenizer, kind="sft", max_length=64, micro_batch_size=1, epochs=1)
    started = time.monotonic()
    assert len(list(stream)) == 1
    assert stream.bad.counts == {"without an answer": 1}
    assert time.monotonic() - started < 20


def test_memory_does_not_grow_with_the_data(
    byte_tokenizer, tmp_path: Path, peak, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(4_000):
            file.write(json.dumps({"text": f"{number}", "more": "x" * 5000}) + "\n")  # 20 MB
    monkeypatch.setattr(batches, "_WINDOW_ROWS", 100)
    stream = BatchStream([tmp_path], byte_tokenizer, max_length=16)
    for _ in range(300):
        next(stream)
    assert peak() < 4

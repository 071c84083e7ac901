"""Files as chunks: ranges of bytes that can be read in any order, each record or piece of text in exactly one.

A line belongs to the chunk in which it begins. The places where a plain text is cut move to an end of a paragraph, of a
line or of a word behind them, so that two neighbours agree on each without having read more than a few KiB.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from training.data.files import DataFile

_SIZE = 64 << 10  # bytes of a chunk; twice as many at most
_MOST_CHUNKS = 200_000  # of more data, chunks are larger
_SEARCHED = 8 << 10  # bytes that are searched for a good place to cut a text
_BLOCK = 64 << 10
_MARKS = (b"\n\n", b"\n\r\n", b"\n", b" ")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of bytes of a file; `stop` is the one behind the last."""

    file: DataFile
    start: int
    stop: int


class Chunks:
    """All chunks of some files, by number."""

    def __init__(self, files: Sequence[DataFile], size: int = _SIZE) -> None:
        size = max(size, sum(file.size for file in files) // _MOST_CHUNKS)
        self._files = files
        self._counts = [max(1, file.size // size) if file.size else 0 for file in files]
        self._ends = list(itertools.accumulate(self._counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Chunk:
        place = bisect_right(self._ends, number)
        file, count = self._files[place], self._counts[place]
        part = number - self._ends[place] + count
        return Chunk(file, file.size * part // count, file.size * (part + 1) // count)


def read_lines(chunk: Chunk, offset: int, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the chunk's lines from an offset on, each with its first byte's place.

    Args:
        chunk: of a file of records.
        offset: a line's beginning; the chunk's own beginning may lie within a line, which belongs to the chunk before.
        limit: bytes of a line at most; None stands for a longer one, of which no more than that is held in memory.
    """
    with chunk.file.path.open("rb") as file:
        at = _line_start(file, offset, chunk.stop) if offset == chunk.start else offset
        while at < chunk.stop:
            file.seek(at)
            line = file.readline(limit + 1)
            if not line:
                return  # the file has become shorter
            is_whole = len(line) <= limit or line.endswith(b"\n")
            yield at, line if is_whole else None
            at += len(line)
            if not is_whole:
                at = _line_start(file, at, chunk.stop)


def read_text(chunk: Chunk) -> bytes:
    """Return the chunk's piece of a plain text."""
    with chunk.file.path.open("rb") as file:
        start, stop = (_cut(file, place, chunk.file.size) for place in (chunk.start, chunk.stop))
        file.seek(start)
        return file.read(stop - start)


def _line_start(file: BinaryIO, position: int, stop: int) -> int:
    """Return where the first line begins at or behind a position; `stop` if none does before it."""
    if position == 0:
        return 0
    at = position - 1
    file.seek(at)
    while at < stop and (block := file.read(min(_BLOCK, stop - at))):
        end = block.find(b"\n")
        if end >= 0:
            return at + end + 1
        at += len(block)
    return stop


def _cut(file: BinaryIO, position: int, size: int) -> int:
    """Return where a text is cut that would be cut at a position."""
    if position in (0, size):
        return position
    file.seek(position)
    searched = file.read(_SEARCHED)
    for mark in _MARKS:
        end = searched.find(mark)
        if end >= 0:
            return position + end + len(mark)
    inside = itertools.takewhile(lambda byte: byte & 0xC0 == 0x80, searched[:3])  # UTF-8: within a character
    return position + sum(1 for _ in inside)

"""The records of some files as a stream: in an order that a seed and the epoch decide, from any position on.

Bad records are passed over here, with those that have nothing to learn; `BadRecords` counts them.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.logs import printable
from training.data.bad_records import BadRecords, RecordError
from training.data.chunks import Chunk, Chunks, read_lines, read_text
from training.data.records import RecordReader
from training.data.records import read_text as document_of
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from training.data.files import DataFile
    from training.data.records import Kind, Record

MAX_LINE = 16 << 20  # bytes of a record


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the stream.

    Attributes:
        epoch: complete passes before it.
        chunk: its chunk's place in the order of this epoch.
        offset: the record's first byte in the chunk's file; below the chunk's beginning is its beginning.
        part: examples of this record that are before it.
    """

    epoch: int = 0
    chunk: int = 0
    offset: int = 0
    part: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is: in the stream, and in which file."""

    begin: Position
    file: DataFile


class RecordStream:
    """Reads records of one kind.

    Attributes:
        bad: what was passed over.
    """

    def __init__(
        self, files: Sequence[DataFile], kind: Kind, labels: Sequence[str] = (), *, seed: int = 0, shuffle: bool = True
    ) -> None:
        """With `shuffle`, chunks of all files are read in another order in each epoch; within a chunk, in its own.

        Raises:
            TrainingError: the kind cannot be read from plain text, and a file is one.
        """
        text = next((file.path for file in files if not file.has_records), None)
        if kind != "language_model" and text is not None:
            raise TrainingError(f"{printable(str(text))} is plain text; the objective {kind} needs records (.jsonl)")
        self._chunks = Chunks(files)
        self._reader = RecordReader(kind, labels)
        self._seed, self._shuffle = seed, shuffle
        self.bad = BadRecords()

    def read(self, start: Position) -> Iterator[tuple[Record, Place]]:
        """Yield the records of an epoch from a position on, each with its place.

        Raises:
            TrainingError: a file cannot be read any more.
        """
        order = self._order(start.epoch)
        for number in range(start.chunk, len(order)):
            chunk = self._chunks[order[number]]
            first = start if number == start.chunk else Position(start.epoch, number)
            try:
                yield from self._lines(chunk, first) if chunk.file.has_records else self._text(chunk, first)
            except OSError as error:
                raise TrainingError(
                    f"{printable(str(chunk.file.path))} cannot be read any more: {error.strerror}"
                ) from None

    def reject(self, place: Place, error: RecordError) -> None:
        """Count a record as bad, if this is the first epoch."""
        if place.begin.epoch == 0:
            self.bad.add((place.begin.chunk, place.begin.offset), place.file.path, place.begin.offset, error)

    def _order(self, epoch: int) -> array[int]:
        order = array("I", range(len(self._chunks)))
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(order)  # noqa: S311 - no secret
        return order

    def _lines(self, chunk: Chunk, start: Position) -> Iterator[tuple[Record, Place]]:
        for begin, line in read_lines(chunk, max(start.offset, chunk.start), MAX_LINE):
            place = Place(Position(start.epoch, start.chunk, begin), chunk.file)
            try:
                if line is None:
                    raise RecordError("too long", f"it has more than {MAX_LINE >> 20} MiB")
                if line.strip():
                    yield self._reader.read(line), place
            except RecordError as error:
                self.reject(place, error)

    def _text(self, chunk: Chunk, start: Position) -> Iterator[tuple[Record, Place]]:
        place = Place(Position(start.epoch, start.chunk, chunk.start), chunk.file)
        try:
            yield document_of(read_text(chunk), is_whole=chunk.stop == chunk.file.size), place
        except RecordError as error:
            self.reject(place, error)

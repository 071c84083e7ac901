"""Micro batches of padded rows, as an endless stream that goes on at the very batch where a state was taken.

Rows are sorted by length within a window, so that a batch's rows are about as long as each other and little is padding;
the batches of a window then come in random order. Owns the windows and the state; rows are made by `examples`.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from training.batch import IGNORED, Batch, TokenBatch
from training.data.bad_records import BadRecords, RecordError
from training.data.documents import Position, RecordStream
from training.data.examples import Example, ExampleMaker, LongDocuments
from training.data.files import find_files
from training.digest import digest
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from server.text.tokenizer import Tokenizer
    from training.data.files import DataFile
    from training.data.records import Kind

_WINDOW_ROWS, _WINDOW_TOKENS = 1024, 1 << 20  # a window ends when it has either; what a resume computes again


@dataclass(frozen=True, slots=True)
class _Placed:
    """An example and where it begins."""

    example: Example
    begin: Position


@dataclass(frozen=True, slots=True)
class _Window:
    """Batches of neighbouring examples; `start` and `end` are where these begin and end."""

    start: Position
    end: Position
    batches: list[list[Example]]


class BatchStream:
    """The micro batches of one data-parallel rank. All ranks read the same data, and take turns without a word.

    Micro batch k of the whole stream goes to rank k % num_ranks. Each epoch has every usable record once; its last
    batch is filled with the first of the next epoch, unless `epochs` ends the stream: one batch may be smaller then.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        tokenizer: Tokenizer,
        *,
        kind: Kind = "language_model",
        labels: Sequence[str] = (),
        max_length: int = 4096,
        micro_batch_size: int = 8,
        pad_to: Literal["longest", "max_length"] = "longest",
        long_documents: LongDocuments = "split",
        num_modalities: int = 3,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        tells: bool = True,
    ) -> None:
        """Find the files; nothing is read yet.

        Args:
            files: JSONL, plain text, or folders.
            tokenizer: the model's.
            kind: what a record has (training.data.records), which is what the objective is called.
            labels: the model's, for the kind "classification".
            max_length: tokens of a row at most.
            micro_batch_size: rows of a batch; of preferences, two for each record.
            pad_to: the width of a batch: its longest row's, or always `max_length`.
            long_documents: what follows the first `max_length` tokens: rows of its own ("split"), or nothing ("cut").
            num_modalities: that the model knows.
            seed: of the order.
            shuffle: whether the order is random; without it rows are still sorted in windows.
            epochs: after which the stream ends; None is never.
            rank: this data-parallel rank.
            num_ranks: data-parallel ranks in all.
            tells: whether bad records are logged here, and not only counted.

        Raises:
            TrainingError: files or settings cannot be used.
        """
        rows = 2 if kind == "dpo" else 1
        if micro_batch_size % rows:
            raise TrainingError(f"micro_batch_size is {micro_batch_size}; expected an even number: pairs have two rows")
        found = find_files(files)
        self._records = RecordStream(found, kind, labels, seed=seed, shuffle=shuffle)
        self._records.bad.is_told = tells
        self._maker = ExampleMaker(
            tokenizer, max_length=max_length, num_modalities=num_modalities, long_documents=long_documents
        )
        self._per_batch = micro_batch_size // rows
        self._width = max_length if pad_to == "max_length" else None
        self._seed, self._shuffle, self._epochs = seed, shuffle, epochs
        self._rank, self._num_ranks = rank, num_ranks
        self._has_labels = kind in ("classification", "reasoning")
        self._settings = {
            "files": _digest(found),
            "contents": digest(file.path for file in found),
            "kind": kind,
            "labels": list(labels),
            "max_length": max_length,
            "micro_batch_size": micro_batch_size,
            "long_documents": long_documents,
            "num_modalities": num_modalities,
            "vocabulary": tokenizer.vocab_size,
            "seed": seed,
        }
        self._num_padded = self._num_tokens = 0
        self._window: _Window
        self._next: int  # the number in the window, or behind it, of the batch that rank 0 takes next
        self._begin(Position(), 0)

    @property
    def bad(self) -> BadRecords:
        """What could not be used of the data so far."""
        return self._records.bad

    @property
    def epoch(self) -> int:
        """Complete passes before the window that the last batch is of."""
        return self._window.start.epoch

    @property
    def padding_share(self) -> float:
        """Which part of the places of all batches so far is padding."""
        return self._num_padded / max(1, self._num_padded + self._num_tokens)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return this rank's next batch.

        Raises:
            TrainingError: no record of the data can be used, or a file cannot be read any more.
        """
        mine = self._next + self._rank
        while mine >= len(self._window.batches):
            count = len(self._window.batches)
            self._window = self._fill(self._window.end)
            self._next, mine = self._next - count, mine - count
            if not self._window.batches:
                raise StopIteration
        self._next += self._num_ranks
        return self._assemble(self._window.batches[mine])

    def state(self) -> dict[str, Any]:
        """Return where the stream is, for `restore`; JSON, and small. It goes for all ranks, and for any number."""
        behind = self._next - len(self._window.batches)
        start, skipped = (self._window.start, self._next) if behind < 0 else (self._window.end, behind)
        return {
            "position": asdict(start),
            "skipped": skipped,
            "bad": self._records.bad.state(),
            "settings": self._settings,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch after which the state was taken.

        Raises:
            TrainingError: the data or the settings are others than they were.
        """
        for name, now in self._settings.items():
            before = state["settings"].get(name)
            if name == "contents" and before is None:  # a checkpoint from before contents were kept
                continue
            if before != now:
                change = "" if name in ("files", "contents") else f": {before!r} then, {now!r} now"
                raise TrainingError(f"the data's {name} changed since the checkpoint was written{change}")
        self._records.bad.restore(state["bad"])
        self._begin(Position(**state["position"]), state["skipped"])

    def _begin(self, position: Position, skipped: int) -> None:
        self._source = self._examples(position)
        self._peeked: _Placed | None = None
        self._window = _Window(position, position, [])
        self._next = skipped

    def _examples(self, start: Position) -> Iterator[_Placed]:
        """Yield all examples from a position on, epoch after epoch."""
        while self._epochs is None or start.epoch < self._epochs:
            is_barren = True
            for record, place in self._records.read(start):
                num_before = start.part if replace(place.begin, part=start.part) == start else 0
                try:
                    for part, example in enumerate(self._maker.make(record)):
                        is_barren = False
                        if part >= num_before:
                            yield _Placed(example, replace(place.begin, part=part))
                except RecordError as error:
                    self._records.reject(place, error)
            if is_barren and start == Position(start.epoch):
                named = "".join(f"; {name}" for name in self.bad.named[:3])
                raise TrainingError(f"the data has no record that can be used: {self.bad}{named}")
            start = Position(start.epoch + 1)

    def _fill(self, start: Position) -> _Window:
        """Take a window's examples: until it is large enough or the epoch ends, and then until the last batch is full.

        With no batch, the stream has ended.
        """
        examples: list[_Placed] = []
        num_tokens = 0
        while (placed := self._peeked or next(self._source, None)) is not None:
            is_large = len(examples) >= _WINDOW_ROWS or num_tokens >= _WINDOW_TOKENS
            is_next_epoch = bool(examples) and placed.begin.epoch > examples[0].begin.epoch
            self._peeked = placed
            if (is_large or is_next_epoch) and len(examples) % self._per_batch == 0:
                break
            self._peeked = None
            examples.append(placed)
            num_tokens += sum(map(len, placed.example))
        if not examples:
            return _Window(start, start, [])
        start, last = examples[0].begin, examples[-1].begin
        return _Window(start, replace(last, part=last.part + 1), self._batched([e.example for e in examples], start))

    def _batched(self, examples: list[Example], start: Position) -> list[list[Example]]:
        draw = random.Random(f"{self._seed}/{start}")  # noqa: S311 - no secret
        if self._shuffle:
            draw.shuffle(examples)
        examples.sort(key=lambda example: max(map(len, example)))
        batches = [examples[i : i + self._per_batch] for i in range(0, len(examples), self._per_batch)]
        if self._shuffle:
            draw.shuffle(batches)
        return batches

    def _assemble(self, examples: list[Example]) -> Batch:
        rows = [row for example in examples for row in example]
        lengths = [len(row) for row in rows]
        width = self._width or max(lengths)
        token_ids_BT, modality_ids_BT = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(2))
        targets_BT = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for number, row in enumerate(rows):
            token_ids_BT[number, : len(row)] = row.token_ids
            modality_ids_BT[number, : len(row)] = row.modality_ids
            targets_BT[number, : len(row)] = row.targets
        self._num_tokens += sum(lengths)
        self._num_padded += len(rows) * width - sum(lengths)
        return Batch(
            TokenBatch(torch.from_numpy(token_ids_BT), torch.from_numpy(modality_ids_BT), torch.tensor(lengths)),
            torch.from_numpy(targets_BT),
            torch.tensor([row.label for row in rows]) if self._has_labels else None,
        )


def _digest(files: Sequence[DataFile]) -> str:
    """Return what changes when files are added, replaced or grow; their folder may be another one."""
    return hashlib.sha256(repr([(file.path.name, file.size) for file in files]).encode()).hexdigest()

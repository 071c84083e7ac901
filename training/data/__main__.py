"""`python -m training.data`: what a run would make of its data, and what it would leave out. Trains nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DeepseekServeError
from engine.loading.resolve import ModelSource
from engine.logs import configure, printable
from server.arguments import Parser, positive
from server.text.tokenizer import Tokenizer
from training.batch import IGNORED
from training.data.batches import BatchStream
from training.data.records import KINDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from training.batch import Batch


@dataclass
class _Sums:
    """What an epoch has."""

    rows: int = 0
    tokens: int = 0
    code: int = 0
    targets: int = 0
    longest: int = 0

    def add(self, batch: Batch) -> None:
        lengths_B = batch.tokens.lengths_B
        self.rows += len(lengths_B)
        self.tokens += batch.tokens.num_tokens
        self.code += int((batch.tokens.modality_ids_BT == 1).sum())
        self.targets += int((batch.targets_BT != IGNORED).sum())
        self.longest = max(self.longest, int(lengths_B.max()))

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows of {self.tokens:,} tokens: {self.tokens / self.rows:.1f} a row, {self.longest:,} at "
            f"most; {self.code / self.tokens:.1%} are code, {self.targets:,} are followed by a target"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Read the data once, as the command line says; the exit status."""
    args = _parser().parse_args(argv)
    configure("train", "info", "text")
    try:
        tokenizer = Tokenizer.load(ModelSource(args.tokenizer, args.tokenizer.name))
        stream, sums, shown = _stream(args, tokenizer), _Sums(), 0
        for batch in stream:
            sums.add(batch)
            for text in _texts(batch, tokenizer) if shown < args.show else ():
                sys.stdout.write(text if shown < args.show else "")
                shown += 1
    except DeepseekServeError as error:
        sys.stderr.write(f"training.data: error: {printable(str(error))}\n")
        return 2
    sys.stdout.write(f"{sums}\npadding: {stream.padding_share:.1%}\nleft out: {stream.bad}\n")
    return 0


def _stream(args: argparse.Namespace, tokenizer: Tokenizer) -> BatchStream:
    return BatchStream(
        args.files,
        tokenizer,
        kind=args.objective,
        labels=args.labels,
        max_length=args.max_length,
        micro_batch_size=args.micro_batch_size,
        long_documents=args.long_documents,
        epochs=1,
    )


def _texts(batch: Batch, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield each row's text, and what of it is learnt if that is not all."""
    for number, length in enumerate(batch.tokens.lengths_B.tolist()):
        text = tokenizer.decode(batch.tokens.token_ids_BT[number, :length].tolist(), skip_special_tokens=False)
        targets = batch.targets_BT[number][batch.targets_BT[number] != IGNORED]
        learnt = tokenizer.decode(targets.tolist(), skip_special_tokens=False)
        yield f"row:    {printable(text)}\nlearnt: {printable(learnt)}\n"


def _parser() -> Parser:
    parser = Parser("python -m training.data", __doc__)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="PATH", help="JSONL, plain text, or folders")
    add("--tokenizer", type=Path, required=True, metavar="FOLDER", help="with tokenizer.json")
    add("--objective", choices=KINDS, default="language_model", help="what the records are for; default %(default)s")
    add("--labels", nargs="+", default=[], metavar="LABEL", help="of the objective classification")
    add("--max-length", type=positive, default=4096, help="tokens of a row at most; default %(default)s")
    add("--micro-batch-size", type=positive, default=8, help="rows of a batch; default %(default)s")
    add("--long-documents", choices=("split", "cut"), default="split", help="default %(default)s")
    add("--show", type=int, default=0, metavar="ROWS", help="print so many rows, and what is learnt of them")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Trains a tokenizer on the documents of a run: byte-level BPE, its special tokens, and a chat template.

    python -m training.data.train_tokenizer --files data/ --vocab-size 8192 --out tokenizer/

It is written as a folder that the server reads (tokenizer.json, tokenizer_config.json, chat_template.jinja).
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engine.errors import DeepseekServeError
from engine.logs import configure, printable
from server.arguments import Parser, positive
from training.data.cleaning import Cleaner
from training.data.documents import Position, RecordStream
from training.data.files import find_files
from training.data.records import Document
from training.data.tokenizing import SEPARATOR
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BOS, EOS = "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_SPECIAL = (BOS, EOS, SEPARATOR, *ROLES)
_REASONING = ("<think>", "</think>")  # tokens too, and part of the text
_LONGEST_TOKEN = 16  # characters: longer ones are runs of one sign, as in tables
_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_LARGEST_VOCAB = 1 << 20  # tokens
_PIECE = 1 << 16  # characters that the trainer gets at once


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Return a tokenizer of at most `vocab_size` tokens, every byte among them. Digits are tokens of their own.

    Raises:
        TrainingError: the vocabulary is too small for the bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(_SPECIAL) + len(_REASONING)
    if vocab_size < smallest:
        raise TrainingError(f"the vocabulary's size is {vocab_size}; expected {smallest} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_REASONING),
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(alphabet),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _REASONING])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer with its chat template, as a checkpoint has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,  # nosec B105  # no secret
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")


def texts_of(files: Sequence[Path | str], megabytes: float) -> Iterator[str]:
    """Yield cleaned texts of documents, from all over the files, until they have so many million characters.

    Raises:
        TrainingError: the files cannot be used, or have no text.
    """
    cleaner = Cleaner(_SPECIAL)
    rest = int(megabytes * 1e6)
    records = RecordStream(find_files(files), "language_model")
    num_texts = 0
    for record, _ in records.read(Position()):
        assert isinstance(record, Document)
        text = cleaner.clean(f"{record.title}\n{record.text}")[:rest]
        for begin in range(0, len(text), _PIECE):
            yield text[begin : begin + _PIECE]
        num_texts += bool(text)
        rest -= len(text)
        if rest <= 0:
            return
    if not num_texts:
        raise TrainingError(f"the data has no text to train a tokenizer on: {records.bad}")


def _vocab_size(text: str) -> int:
    """Return the flag's value; the trainer sets memory aside for all of it at once."""
    if not text.isdecimal() or len(text) > len(str(_LARGEST_VOCAB)) or not 1 <= int(text) <= _LARGEST_VOCAB:
        raise ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 to {_LARGEST_VOCAB}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Train one as the command line says; the exit status."""
    parser = Parser("python -m training.data.train_tokenizer", __doc__)
    add = parser.add_argument
    add("--files", nargs="+", type=Path, required=True, metavar="PATH", help="JSONL, plain text, or folders")
    add("--vocab-size", type=_vocab_size, default=8192, help="tokens at most; default %(default)s")
    add("--megabytes", type=positive, default=100, help="million characters that are read at most; default %(default)s")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where it is written")
    args = parser.parse_args(argv)
    configure("train", "info", "text")
    try:
        tokenizer = train_tokenizer(texts_of(args.files, args.megabytes), args.vocab_size)
        save_tokenizer(tokenizer, args.out)
    except (DeepseekServeError, OSError) as error:
        sys.stderr.write(f"train_tokenizer: error: {printable(str(error))}\n")
        return 2
    sys.stdout.write(f"{args.out}: {tokenizer.get_vocab_size():,} tokens\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

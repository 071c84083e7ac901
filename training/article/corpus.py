"""Writes the data of `make article`: two domains of text, and small sets for alignment. Each has a held-out part.

    python -m training.article.corpus --out DIR --prose-mb 8 --code-mb 8

Every record is in one part alone, by the hash of its text. The same packages and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engine.errors import DeepseekServeError
from engine.logs import printable
from server.arguments import Parser
from training.article import made_up
from training.article.novelty import Novelty
from training.article.sources import find_modules, read_module
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from training.article.sources import Module

DOMAINS = ("prose", "code")
PARTS = ("train", "held-out")
MADE_UP = {"chats": made_up.chats, "preferences": made_up.preferences, "safety": made_up.labelled}
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_SHORTEST = {"prose": 200, "code": 400}  # characters of a document
_HELD_OUT_MADE_UP = 0.1  # of their number for training


@dataclass(frozen=True)
class CorpusSizes:
    """How much of each kind is written for training.

    Attributes:
        prose_mb, code_mb: million characters.
        chats, preferences, safety: records.
        held_out: share of the documents that are not for training.
    """

    prose_mb: float = 8.0
    code_mb: float = 8.0
    chats: int = 4000
    preferences: int = 2000
    safety: int = 2000
    held_out: float = 0.05


def write_corpus(
    folder: Path, sizes: CorpusSizes | None = None, *, seed: int = 0, modules: Sequence[Module] | None = None
) -> dict[str, int]:
    """Write `prose`, `code`, `chats`, `preferences` and `safety`, each as `.train.jsonl` and `.held-out.jsonl`.

    Args:
        folder: where; made if it is not there.
        sizes: of each.
        seed: of what is made up.
        modules: whose texts are taken; by default, of all that is installed.

    Returns:
        The number of characters of each file of text, and of records of each file that is made up.

    Raises:
        TrainingError: the modules have no text.
    """
    sizes = sizes or CorpusSizes()
    folder.mkdir(parents=True, exist_ok=True)
    written = _write_domains(folder, sizes, find_modules() if modules is None else modules)
    for name, make in MADE_UP.items():
        count = int(getattr(sizes, name))
        for part in PARTS:
            is_held_out = part == "held-out"
            size = max(2, int(count * _HELD_OUT_MADE_UP)) if is_held_out else count
            file_name = f"{name}.{part}.jsonl"
            with _replaced(folder / file_name) as file:
                file.writelines(json.dumps(record) + "\n" for record in make(size, seed, is_held_out=is_held_out))
            written[file_name] = size
    about = {"sizes": asdict(sizes), "seed": seed, "written": written}
    with _replaced(folder / "about.json") as file:
        file.write(json.dumps(about, indent=2) + "\n")
    return written


def _write_domains(folder: Path, sizes: CorpusSizes, modules: Iterable[Module]) -> dict[str, int]:
    wanted = {"prose": sizes.prose_mb * 1e6, "code": sizes.code_mb * 1e6}
    with ExitStack() as stack:
        domains = {}
        for name, characters in wanted.items():
            files = {part: stack.enter_context(_replaced(folder / f"{name}.{part}.jsonl")) for part in PARTS}
            domains[name] = _Domain(name, characters, sizes.held_out, files)
        _fill(domains, modules)
        for name, domain in domains.items():
            if wanted[name] and not domain.written["train"]:
                raise TrainingError(f"no module that is installed has {name} to train on")
    return {f"{name}.{part}.jsonl": domain.written[part] for name, domain in domains.items() for part in PARTS}


def _fill(domains: Mapping[str, _Domain], modules: Iterable[Module]) -> None:
    for module in modules:
        if all(domain.is_full for domain in domains.values()):
            return
        text = read_module(module)
        if text is not None:
            domains["prose"].add_prose(module.name, text.prose)
            domains["code"].add_code(module.name, text.code)


class _Domain:
    """One domain's documents, as they are found."""

    def __init__(self, name: str, wanted: float, held_out: float, files: Mapping[str, IO[str]]) -> None:
        self._name, self._rest, self._held_out, self._files = name, wanted, held_out, files
        self._novelty = Novelty()
        self.written = dict.fromkeys(files, 0)  # characters

    @property
    def is_full(self) -> bool:
        return self._rest <= 0

    def add_prose(self, title: str, paragraphs: Sequence[str]) -> None:
        """A document of the paragraphs that say something new."""
        if not self.is_full:
            new = [text for text in paragraphs if self._novelty.take(_SENTENCE_END.split(text))]
            self._add({"title": title, "text": "\n\n".join(new)})

    def add_code(self, title: str, code: str) -> None:
        """A document of a module's code, if most of its lines are new."""
        if not self.is_full and self._novelty.take(code.split("\n")):
            self._add({"title": title, "text": code, "modality": "code"})

    def _add(self, record: dict[str, Any]) -> None:
        text: str = record["text"]
        if len(text) < _SHORTEST[self._name]:
            return
        share = int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:8]) / 2**64
        part = "held-out" if share < self._held_out else "train"
        self._files[part].write(json.dumps(record) + "\n")
        self.written[part] += len(text)
        if part == "train":
            self._rest -= len(text)


@contextmanager
def _replaced(path: Path) -> Iterator[IO[str]]:
    """A file that takes the place of `path` once all of it is written."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a corpus as the command line says; the exit status."""
    parser = Parser("python -m training.article.corpus", __doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where it is written")
    parser.add_argument("--seed", type=int, default=0, help="of what is made up; default %(default)s")
    for name, default in asdict(CorpusSizes()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"{_HELP[name]}; default %(default)s")
    options = vars(parser.parse_args(argv))
    folder, seed = options.pop("out"), options.pop("seed")
    try:
        written = write_corpus(folder, CorpusSizes(**options), seed=seed)
    except (DeepseekServeError, OSError) as error:
        sys.stderr.write(f"corpus: error: {printable(str(error))}\n")
        return 2
    for name, size in written.items():
        unit = "characters" if name.split(".")[0] in DOMAINS else "records"
        sys.stdout.write(f"{folder / name}: {size:,} {unit}\n")
    return 0


_HELP = {
    "prose_mb": "million characters of docstrings",
    "code_mb": "million characters of source",
    "chats": "conversations",
    "preferences": "questions with two answers",
    "safety": "requests that are safe or unsafe",
    "held_out": "share of the documents that are not for training",
}

if __name__ == "__main__":
    sys.exit(main())

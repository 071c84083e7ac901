"""A GGUF file, or the parts of one that is split, of which the first has the metadata. Imports no torch.

Part 2 of NAME in 3 parts is NAME-00002-of-00003.gguf, which lies beside the others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.errors import ModelError
from engine.loading.gguf_file import GGUFFile
from engine.loading.name_list import name_list

if TYPE_CHECKING:
    from pathlib import Path

_NAME_OF_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


def open_parts(path: Path) -> list[GGUFFile]:
    """Open the file at this path, and if it is the first of several parts, all of them in their order.

    Raises:
        ModelError: a file is damaged, is not the first part, or the other parts are not there or do not fit.
    """
    first = GGUFFile(path)
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return [first]
    name = _NAME_OF_PART.fullmatch(path.stem)
    if name is None or (int(name[2]), int(name[3])) != (1, count) or first.metadata.get("split.no") != 0:
        raise ModelError(
            f"{path} is not the first part of a GGUF file that is split in {count!r:.100}; {_advice(path)}"
        )
    others = [path.with_stem(f"{name[1]}-{number + 1:05}-of-{name[3]}") for number in range(1, count)]
    if absent := [other.name for other in others if not other.exists()]:
        raise ModelError(f"{path} is one of {count} parts; there is no {name_list(absent)} beside it; {_advice(path)}")
    parts = [first, *map(GGUFFile, others)]
    for number, part in enumerate(parts):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            raise ModelError(f"{part.path} is not part {number + 1} of {count}, as its name says")
    _check_tensors(parts)
    return parts


def whole_name(path: Path) -> str:
    """The name of a GGUF file, without what is behind it in the name of a part."""
    name = _NAME_OF_PART.fullmatch(path.stem)
    return path.stem if name is None or not name[1] else name[1]


def is_later_part(path: Path) -> bool:
    """Whether a file has the name of a part that is not the first."""
    name = _NAME_OF_PART.fullmatch(path.stem)
    return name is not None and int(name[2]) != 1


def _check_tensors(parts: list[GGUFFile]) -> None:
    """Refuse parts of several files: they have a tensor twice, or not as many as the first one says."""
    names: set[str] = set()
    for part in parts:
        if again := names & part.tensors.keys():
            raise ModelError(f"{part.path} has tensors that another part has too: {name_list(again)}")
        names |= part.tensors.keys()
    total = parts[0].metadata.get("split.tensors.count", len(names))
    if total != len(names):
        raise ModelError(f"{parts[0].path} and its other parts have {len(names)} tensors, expected {total!r:.100}")


def _advice(path: Path) -> str:
    return (
        f"name the first part ({whole_name(path)}-00001-of-0000N.gguf) with all others beside it, or make one file of "
        "them with `llama-gguf-split --merge FIRST_PART WHOLE.gguf`"
    )

"""Folders of checkpoints on disk: each appears whole or not at all, and says by sums whether it still is.

Knows nothing of what is in them (training.checkpoints). A folder is written under another name and renamed when all of
it is on the disk; one that goes is renamed before it is deleted. So a process may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STEP = re.compile(r"step-(\d{8,})")
_UNFINISHED = (".writing-", ".deleting-")
_MANIFEST = "manifest.json"
_CHUNK = 1 << 22  # bytes that are summed at once


def step_folders(root: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps, the newest first."""
    found = {int(match[1]): path for path in _entries(root) if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def begin(root: Path, step: int) -> Path:
    """A new folder to write the checkpoint of this step into; what a killed process left is removed."""
    root.mkdir(parents=True, exist_ok=True)
    for path in _entries(root):
        if path.name.startswith(_UNFINISHED):
            shutil.rmtree(path)
    folder = unfinished(root, step)
    folder.mkdir()
    return folder


def unfinished(root: Path, step: int) -> Path:
    """Where the checkpoint of this step is while it is written."""
    return root / f".writing-step-{step:08}"


def finished(root: Path, step: int) -> Path:
    """Where the checkpoint of this step is once it is whole."""
    return root / f"step-{step:08}"


def commit(root: Path, step: int) -> None:
    """Give the folder that `begin` made its name, once all of it is on the disk."""
    folder = unfinished(root, step)
    sums = {str(path.relative_to(folder)): _sum(path) for path in _files(folder)}
    (folder / _MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    for path in (*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _flush(path)
    final = finished(root, step)
    if final.exists():  # a damaged one, or a run that started anew
        _delete(final)
    folder.rename(final)
    _flush(root)


def discard(root: Path, step: int) -> None:
    """Remove what there is of a checkpoint that could not be written, as far as that is possible."""
    shutil.rmtree(unfinished(root, step), ignore_errors=True)


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the newest checkpoints."""
    for path in list(step_folders(root).values())[keep_last:]:
        _delete(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if its files are those that were written."""
    try:
        sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name, written in sums.items():
            if (found := _sum(folder / name)) != written:
                return f"{name} has {found[0]} bytes and the sum {found[1]:08x}, not {written[0]} and {written[1]:08x}"
    except (OSError, ValueError, AttributeError, TypeError, IndexError) as error:
        return f"{_MANIFEST} or a file that it names cannot be read: {error}"
    return None


def _delete(path: Path) -> None:
    gone = path.with_name(f".deleting-{path.name}")
    if gone.exists():
        shutil.rmtree(gone)
    path.rename(gone)
    shutil.rmtree(gone)


def _entries(root: Path) -> list[Path]:
    return list(root.iterdir()) if root.is_dir() else []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sum(path: Path) -> list[int]:
    """Size and CRC-32 of a file; a list, as JSON gives it back."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return [size, crc]


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

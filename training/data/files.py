"""Which files hold the data: paths become regular files of a known form and size. Reads no content."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.logs import printable
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_RECORDS = (".jsonl", ".ndjson")
_TEXTS = (".txt", ".md")
_FORMS = f"records ({', '.join(_RECORDS)}) or plain text ({', '.join(_TEXTS)})"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of records, one a line, or of plain text.

    Attributes:
        size: bytes when the run began.
    """

    path: Path
    size: int

    @property
    def has_records(self) -> bool:
        """Whether each line is a JSON record; else the file is plain text."""
        return self.path.suffix.lower() in _RECORDS


def find_files(paths: Sequence[Path | str]) -> tuple[DataFile, ...]:
    """Return the files in the order of `paths`; a folder's are sorted by name, those of its folders included.

    In a folder, what is not a regular file with one of the known endings is passed over.

    Raises:
        TrainingError: a path is missing, unreadable, of another form, or a folder without data; or all is empty.
    """
    files = [file for path in paths for file in _files_at(Path(path))]
    if not any(file.size for file in files):
        raise TrainingError(f"the data is empty: {', '.join(printable(str(path)) for path in paths) or 'no files'}")
    return tuple(files)


def _files_at(path: Path) -> Iterator[DataFile]:
    status = _status(path)
    if stat.S_ISDIR(status.st_mode):
        yield from _files_in(path)
        return
    if not stat.S_ISREG(status.st_mode):
        raise TrainingError(f"{printable(str(path))} is no regular file, so that it cannot be read from anywhere in it")
    if path.suffix.lower() not in _RECORDS + _TEXTS:
        raise TrainingError(f"{printable(str(path))} has none of the known endings; expected {_FORMS}")
    yield _readable(path, status.st_size)


def _files_in(folder: Path) -> Iterator[DataFile]:
    is_empty = True
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names)):
            if path.suffix.lower() in _RECORDS + _TEXTS and path.is_file():
                is_empty = False
                yield _readable(path, _status(path).st_size)
    if is_empty:
        raise TrainingError(f"the folder {printable(str(folder))} has no data; expected {_FORMS}")


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainingError(f"the data {printable(str(path))} cannot be read: {reason}") from None


def _readable(path: Path, size: int) -> DataFile:
    if not os.access(path, os.R_OK):
        raise TrainingError(f"the data {printable(str(path))} cannot be read: permission denied")
    return DataFile(path, size)


def _refuse(error: OSError) -> None:
    raise TrainingError(f"the data {printable(str(error.filename))} cannot be read: {error.strerror}")

"""Reads and maps the files of a checkpoint: regular files only, up to a size.

A pipe or a device in place of a file would block its reader or never end, and a sparse file can be larger than memory.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import TYPE_CHECKING

from engine.host_memory import address_space_bytes

if TYPE_CHECKING:
    from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, or a link to one; called before a library opens the path.

    Raises:
        OSError: the path is something else, or is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no regular file")


def map_file(path: Path) -> mmap.mmap:
    """The content of a file, whose pages are read where they are used. Nobody can write to it.

    The system reserves no memory for such a map, so that the file can be larger than memory.

    Raises:
        OSError: the file is not regular, or cannot be mapped.
        ValueError: the file is empty.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
    raise no_room_to_map(path)


def no_room_to_map(path: Path) -> OSError:
    """The error of a file for which the process has no address space: what it takes, is left, and helps."""
    size, left = path.stat().st_size, address_space_bytes()
    text = f"{size / GIB:.3g} GiB of address space are needed to map it"
    if left is None:
        return OSError(f"{text}, and the system does not give them")
    return OSError(f"{text}; `ulimit -v` leaves {left / GIB:.3g}. Files are mapped whole: raise or lift that limit")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: the file is not regular, cannot be read, or has more than `max_bytes` bytes.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no regular file")
        if status.st_size > max_bytes:
            raise OSError(f"{path} has {status.st_size} bytes; at most {max_bytes} are read")
        return file.read(status.st_size)  # a file of /proc, which may be endless, has size 0


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)

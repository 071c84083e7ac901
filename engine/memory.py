"""Returns memory to the system while a model is loaded, and keeps freed memory while it runs. A server keeps little.

The peak of a load is then the model alone, without the checkpoint. The temporaries of a step cause no page faults.
"""

from __future__ import annotations

import ctypes
import mmap

_TRIM_INTERVAL = 64 << 20  # bytes read between two trims
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = 1 << 30, 32 << 20  # glibc's largest mmap threshold is 32 MiB
_FEW_ARENAS, _LARGE_BLOCK, _KEPT_AT_MOST = 2, 1 << 20, 16 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def drop_pages(address: int, num_bytes: int) -> None:
    """Release the pages that lie completely in this part of a file's memory map; the next access reads them again.

    Where the system has no madvise, the pages stay until the system needs their memory.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(mmap, "MADV_DONTNEED"):
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


class Trimmer:
    """Makes the C library return the memory of freed tensors, which it keeps in its arenas, to the system."""

    def __init__(self) -> None:
        self._num_bytes = 0

    def count(self, num_bytes: int) -> None:
        """Count bytes that were read; trim once for each 64 MiB."""
        self._num_bytes += num_bytes
        if self._num_bytes >= _TRIM_INTERVAL:
            self.trim()

    def trim(self) -> None:
        """Return all free memory, if the C library has malloc_trim."""
        self._num_bytes = 0
        if hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next step.

    By default the C library returns a freed block of some MiB to the system at once, and every page of the next block
    is a page fault: to draw random tokens for 32 sequences took 16 ms instead of 2.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        _libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def give_back_freed_memory() -> None:
    """Make the C library give large freed blocks back to the system at once, and keep little beside them.

    By default each thread keeps what it freed, and so does whoever freed a large block once: four texts of 1 MB that
    were tokenised left 400 MB.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _FEW_ARENAS)
        _libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        _libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_AT_MOST)

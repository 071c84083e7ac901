"""Memory: given back while a model is loaded, kept once it runs.

So a load's peak is the model, not the checkpoint beside it; and a step's temporaries are no page faults.
"""

from __future__ import annotations

import ctypes
import mmap

_LEFT_IDLE = 64 << 20  # bytes read between two trims of the allocator
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT, _LARGEST = 1 << 30, 32 << 20  # glibc takes no larger mmap threshold than 32 MiB
_libc = ctypes.CDLL(None, use_errno=True)


def drop_pages(address: int, num_bytes: int) -> None:
    """Give back the pages that lie wholly in this part of a file's map; the next touch reads them anew.

    A hint: where the system takes none, the pages stay until memory is wanted.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(mmap, "MADV_DONTNEED"):
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


class Trimmer:
    """Has the C library return what tensors that were read, converted and freed left behind in its arenas."""

    def __init__(self) -> None:
        self._num_bytes = 0

    def read(self, num_bytes: int) -> None:
        """Count what was read; trim now and then."""
        self._num_bytes += num_bytes
        if self._num_bytes >= _LEFT_IDLE:
            self.trim()

    def trim(self) -> None:
        """Return what is free; a C library without malloc_trim keeps it for later."""
        self._num_bytes = 0
        if hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step.

    By default it returns blocks of some MiB to the system at once, and every page of the next one is a page fault:
    drawing random tokens for 32 sequences took 16 ms instead of 2.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        _libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)

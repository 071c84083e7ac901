"""How far a long computation is: a bar on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

_LINE_EVERY = 15.0  # seconds


def shown(items: Iterable[T], what: str, unit: str, total: int, *, progress: bool) -> Iterator[T]:
    """The items, with what is done of them on standard error if `progress`, and an estimate of the time left."""
    if not progress:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, what, total, unit=unit, file=sys.stderr, smoothing=0.05)
    else:
        yield from _told(items, what, unit, total)


def _told(items: Iterable[T], what: str, unit: str, total: int) -> Iterator[T]:
    began = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - told >= _LINE_EVERY:
            told, left = now, tqdm.format_interval((now - began) / done * (total - done))
            sys.stderr.write(f"{what}: {done} of {total} {unit}s, about {left} left\n")
            sys.stderr.flush()
        yield item

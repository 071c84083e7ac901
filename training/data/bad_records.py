"""What cannot be used of the data: counted by kind, the first of each kind named, and never fatal."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.logs import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_logger = logging.getLogger(__name__)
_NUM_NAMED = 5  # of each kind
_BLOCK = 1 << 20
_MOST_COUNTED = 1 << 30  # bytes that are read to find a line's number; further back, the byte is named


class RecordError(ValueError):
    """One record cannot be used.

    Attributes:
        kind: what it is counted as, such as "not JSON".
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class BadRecords:
    """Counts over the first epoch; later ones meet the same records again.

    Attributes:
        counts: bad records by kind.
        named: the first few of each kind, as "file:line: kind: reason".
        is_told: whether these are logged, too; one of several ranks is enough.
    """

    counts: dict[str, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    is_told: bool = True
    _last: tuple[int, int] = (-1, -1)  # chunk and offset; what is read again after a resume is not counted again

    def add(self, place: tuple[int, int], path: Path, offset: int, error: RecordError) -> None:
        """Count a record.

        Args:
            place: where it is in the order of reading, ascending.
            path: its file.
            offset: of its first byte in the file.
            error: what is wrong with it.
        """
        if place <= self._last:
            return
        self._last = place
        self.counts[error.kind] = self.counts.get(error.kind, 0) + 1
        if self.counts[error.kind] <= _NUM_NAMED:
            line = _line_number(path, offset) if offset < _MOST_COUNTED else f"byte {offset}"
            name = f"{printable(str(path))}:{line}: {printable(f'{error.kind}: {error!s:.200}')}"
            self.named.append(name)
            self._tell("left out %s", name)
        elif self.counts[error.kind] == _NUM_NAMED + 1:
            self._tell("left out more records that are %s; they are counted and not named", error.kind)

    def _tell(self, message: str, what: str) -> None:
        if self.is_told:
            _logger.warning(message, what)

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items())) or "none"

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes; JSON."""
        return {"counts": dict(self.counts), "named": list(self.named), "last": list(self._last)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier state."""
        self.counts, self.named = dict(state["counts"]), list(state["named"])
        chunk, offset = state["last"]
        self._last = (chunk, offset)


def _line_number(path: Path, offset: int) -> int:
    """Return the line of a byte; the file is read up to there, which only the few records that are named cost."""
    number = 1
    try:
        with path.open("rb") as file:
            while offset > 0 and (block := file.read(min(offset, _BLOCK))):
                number += block.count(b"\n")
                offset -= len(block)
    except OSError:
        return 0
    return number

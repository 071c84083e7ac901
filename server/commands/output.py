"""What a command prints in the end: a table to people, JSON to programs. Progress goes to standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


Figures = dict[str, Any]


def report(text: str, figures: Figures | Sequence[Figures], *, as_json: bool) -> None:
    """Print the text on a terminal; else JSON, a line each, and the text beside it if standard error is a terminal."""
    if sys.stdout.isatty() and not as_json:
        sys.stdout.write(text.rstrip("\n") + "\n")
        return
    for line in [figures] if isinstance(figures, dict) else figures:
        sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    if sys.stderr.isatty() and not sys.stdout.isatty():
        sys.stderr.write(text.rstrip("\n") + "\n")


def fault_of(error: Exception, out: Path) -> str:
    """What went wrong while a command wrote to this folder: the system's words for a full disk name no file."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return f"--out {out} cannot be written: {error.strerror}"
    return str(error)


def table(rows: list[list[str]]) -> str:
    """Return lines with aligned columns: the first to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(first: str, *others: str) -> str:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    return "\n".join(line(*row) for row in rows)

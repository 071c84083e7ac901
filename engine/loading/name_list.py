"""Names out of a checkpoint, in an error: the first ones, each of a length that one can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_SHOWN = 10
_MAX_LETTERS = 300  # of a name and what is wrong with it


def name_list(names: Collection[str]) -> str:
    """The first names in their order, and how many more there are."""
    shown = ", ".join(map(_shortened, sorted(names)[:MAX_SHOWN]))
    return f"{shown} and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else shown


def _shortened(name: str) -> str:
    """Without the middle of a long name: what is wrong with it may stand at its end."""
    if len(name) > _MAX_LETTERS:
        return f"{name[: _MAX_LETTERS // 2]}...{name[-_MAX_LETTERS // 2 :]}"
    return name or repr(name)

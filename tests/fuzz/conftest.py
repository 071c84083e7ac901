"""Inputs that hypothesis makes up: a few in each run of the tests, thousands by `make fuzz`."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = 512 << 20  # bytes that all inputs of one test may add


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """No test makes the process's peak of memory grow by more than the bound."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < _MEMORY

"""Each claim of docs/security.md names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.robustness.test_rows import TESTS, functions

PAGE = (Path(__file__).parents[2] / "docs/security.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_test_that_the_page_names_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 20
    for file, name in named:
        assert (TESTS / file).is_file(), file
        assert name in functions(file), name


def test_every_row_of_its_tables_names_one() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| attempt", "| ---"))]
    assert rows
    assert all(len(NAMED.findall(row)) == 1 for row in rows)

"""Every row has its tests."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.robustness import test_faults, test_http, test_requests
from tests.robustness.rows import ROWS

TESTS = Path(__file__).parents[1]
CASES = {f"robustness/{Path(module.__file__).name}": module for module in (test_requests, test_http, test_faults)}


@cache
def functions(file: str) -> dict[str, ast.AST]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_rows_are_numbered_without_a_gap() -> None:
    assert list(ROWS) == list(range(1, 42))
    assert all(row.what and row.answer and row.tests for row in ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_the_tests_of_a_row_exist(number: int) -> None:
    for test in ROWS[number].tests:
        file, _, name = test.partition("::")
        assert name in functions(file), test


def ids(file: str, name: str) -> set[int]:
    """The numbers of the rows in the ids of a test of this folder."""
    marks = getattr(CASES[file], name).pytestmark
    cases = [case for mark in marks if mark.name == "parametrize" for case in mark.args[1]]
    return {int(case.id.split()[0]) for case in cases}


def test_each_test_of_this_folder_has_a_case_for_its_rows_and_no_other() -> None:
    claimed: dict[tuple[str, str], set[int]] = {}
    for number, row in ROWS.items():
        for test in row.tests:
            file, _, name = test.partition("::")
            if file in CASES:
                claimed.setdefault((file, name), set()).add(number)
    for (file, name), numbers in claimed.items():
        assert ids(file, name) == numbers, name
    here = {(file, name) for file in CASES for name in functions(file) if name.startswith("test_")}
    assert here == claimed.keys()

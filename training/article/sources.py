"""Text that is on this machine anyway: modules of Python and of installed packages, as prose and as code.

The prose of a module is what its docstrings say in whole sentences; its code is the source without the docstrings, so
that neither has the other's text. Nothing of it is ever part of this project's files.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PASSED_OVER = re.compile(r"(^|[/_.])(tests?|testing|_?vendor(ed)?|third_party|pb2|conftest|lib2to3|idlelib)([/_.]|$)")
_SMALLEST, _LARGEST = 500, 200_000  # bytes of a module; larger ones are mostly tables
_LONGEST_LINE = 200  # characters, of code: longer lines are data
_PARAGRAPHS = re.compile(r"\n\s*\n")
_SENTENCES = re.compile(r"[A-Z`'\"(].*[.!?:][`'\")]*", re.DOTALL)
_MARKUP = re.compile(r">>>|^\s*(?:[:.|+@#*-]|\d+[.)])|\w\s*:\s*\n|[=~^-]{4}|https?://|\\[a-z]+\{|[{}<>|]", re.MULTILINE)
_ROLES = re.compile(r":(?:\w+:)+(?=`)|``|(?<=`)_+")  # of reStructuredText
_FEWEST_WORDS = 8
_WORDY = 0.82  # share of a paragraph's characters that are letters and spaces


@dataclass(frozen=True, slots=True)
class Module:
    """A module's source file.

    Attributes:
        name: with dots, as it is imported.
    """

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class ModuleText:
    """What a module gives: paragraphs of prose, and code. Either may be empty."""

    prose: tuple[str, ...]
    code: str


def find_modules(folders: Sequence[Path] | None = None) -> list[Module]:
    """Return the modules below some folders, in an order that is random and always the same.

    Args:
        folders: by default, Python's library and its installed packages.
    """
    if folders is None:
        folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    found = {module.name: module for folder in folders for module in _modules_in(folder)}
    return sorted(found.values(), key=lambda module: hashlib.sha256(module.name.encode()).digest())


def read_module(module: Module) -> ModuleText | None:
    """Return a module's texts; None if it is no Python, or of no use here."""
    try:
        source = module.path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in others' strings
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    docstrings = list(_docstrings(tree))
    prose = [paragraph for node in docstrings for paragraph in _paragraphs(node.value)]
    return ModuleText(tuple(prose), _code(source, docstrings))


def _modules_in(folder: Path) -> Iterator[Module]:
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        parts = relative.with_suffix("").parts
        if (
            "site-packages" in parts
            or _PASSED_OVER.search(relative.as_posix())
            or not all(map(str.isidentifier, parts))
        ):
            continue
        if path.is_file() and _SMALLEST <= path.stat().st_size <= _LARGEST:
            yield Module(".".join(parts).removesuffix(".__init__"), path)


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield all docstrings; expressions, which have most of a tree's nodes, are not entered."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str()) as docstring), *_]:
                    yield docstring
        nodes.extend(reversed([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]))


def _paragraphs(docstring: object) -> Iterator[str]:
    """Yield the paragraphs that are sentences, each on one line; lists, tables, signatures and examples are not."""
    for paragraph in _PARAGRAPHS.split(inspect.cleandoc(str(docstring))):
        if _MARKUP.search(paragraph):
            continue
        text = " ".join(_ROLES.sub("", paragraph).split())
        if not _SENTENCES.fullmatch(text) or len(text.split()) < _FEWEST_WORDS:
            continue
        if sum(char.isalpha() or char == " " for char in text) >= _WORDY * len(text):
            yield text


def _code(source: str, docstrings: Sequence[ast.Constant]) -> str:
    """Return the source without docstrings and without the comments at its top, which are mostly a license."""
    lines = source.splitlines()
    if any(len(line) > _LONGEST_LINE for line in lines):
        return ""
    for node in docstrings:
        assert node.end_lineno is not None
        for number in range(node.lineno - 1, node.end_lineno):
            lines[number] = ""
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    kept = [line for i, line in enumerate(lines[first:]) if line.strip() or (i and lines[first + i - 1].strip())]
    return "\n".join(kept).strip("\n")

"""The documentation names only what there is: links and headings, files, flags, make targets and modules.

`make check` runs these without conftest.py, which imports torch.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from engine.config import EngineConfig
from server.commands import make_checkpoint
from server.config import ServerConfig

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "deploy", "docs", "engine", "kernels", "server", "tests", "training")
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "deploy/*/*/*.md") for path in ROOT.glob(pattern)
)
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
OF_OTHERS = {  # flags of other programs that pages name
    *("--cpus", "--cpuset-cpus", "--gpus", "--pid", "--stop-timeout", "--wait"),  # docker
    *("--from-file", "--from-literal", "--since"),  # kubectl, docker, journalctl
    *("--backend", "--base-url", "--dataset-name", "--endpoint", "--max-concurrency"),  # vllm bench serve
    *("--num-prompts", "--random-input-len", "--random-output-len"),  # the same
    *("--alias", "--logdir", "--max-model-len", "--total-queued-requests-metric"),  # llama-server, tensorboard, vLLM
}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Flags of the server, and all that some program or test of the repository names."""
    files = [ROOT / "Makefile", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    named = {flag for path in files for flag in re.findall(r"--[a-z][a-z0-9-]+", path.read_text())}
    fields = [*EngineConfig.model_fields, *ServerConfig.model_fields]
    return named | {"--" + name.replace("_", "-") for name in [*fields, *make_checkpoint.SIZES]} | OF_OTHERS


@pages
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{target}: there is no such file"
            assert not anchor or anchor in headings(there), f"{target}: there is no such heading"


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    folder = ROOT / "tests" if page.name == "security.md" else ROOT  # tests/robustness/test_security_page.py
    for path in re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w./-]+\.(?:py|h|cpp|md))(?:::\w+)?`", page.read_text()):
        assert (folder / path).exists() or (ROOT / path).exists(), path


@pages
def test_flags_targets_and_modules_that_are_named_exist(page: Path, flags: set[str]) -> None:
    text = page.read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= flags
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= targets
    for module in re.findall(r"python3? -m ([\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_methods_that_are_named_exist() -> None:
    """`Class.method` of the pages that tell how the code works."""
    classes = {
        node.name: ast.unparse(node)
        for package in ("engine", "kernels", "server")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    named = {name for page in PAGES for name in re.findall(r"`([A-Z]\w+\.\w+)(?:\([^`]*\))?`", page.read_text())}
    of_ours = [name.split(".") for name in named if name.split(".")[0] in classes]
    assert len(of_ours) > 10
    for class_name, method in of_ours:
        assert re.search(rf"\b{method}\b", classes[class_name]), f"{class_name} has no {method}"


def test_each_page_is_linked_from_the_list_of_pages() -> None:
    """Of docs/architecture.md; the README links to that."""
    listed = {
        target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "docs/architecture.md").read_text())
    }
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {"architecture.md"} <= listed

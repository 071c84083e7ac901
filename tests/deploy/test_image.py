"""What the Dockerfile says of the code is so. That the image builds, runs and answers is `make image-test`."""

from __future__ import annotations

import fnmatch
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kernels.native.build import ISAS
from server.command_line import CommandLine
from server.config import ServerConfig
from server.http.gate import OPEN_PATHS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name: str) -> list[str]:
    """The arguments of every instruction with this name."""
    return re.findall(rf"^{name} +(.+)$", DOCKERFILE, re.MULTILINE)


def test_the_container_runs_the_command_under_an_init_as_the_user_whom_manifests_name() -> None:
    [entrypoint] = map(json.loads, instructions("ENTRYPOINT"))
    assert entrypoint[:2] == ["tini", "--"]
    assert entrypoint[2] in PROJECT["scripts"]
    assert instructions("USER") == ["10001"]


def test_the_port_is_the_servers() -> None:
    port = str(ServerConfig().port)
    [health] = instructions("HEALTHCHECK")
    assert instructions("EXPOSE") == [port]
    assert f"os.environ.get('DEEPSEEK_SERVE_PORT', '{port}')" in health


def test_the_health_check_asks_a_route_that_needs_no_key() -> None:
    [health] = instructions("HEALTHCHECK")
    assert re.findall(r"'(/\w+)'", health) == ["/readyz"]
    assert "/readyz" in OPEN_PATHS


def test_every_variable_is_a_flags() -> None:
    names = set(re.findall(r"DEEPSEEK_SERVE_(\w+)", DOCKERFILE))
    assert {"HOST", "PORT", "DRAIN_TIMEOUT", "TLS_CERT"} == names
    assert {name.lower() for name in names} <= CommandLine.model_fields.keys()


def test_the_version_is_the_packages() -> None:
    assert f"VERSION={PROJECT['version']}" in instructions("ARG")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    assert {source for source in sources if not {source, source.split("/")[0]} & allowed} == set()


def test_the_files_copied_for_the_default_model_are_all_that_fetching_it_imports(tmp_path: Path) -> None:
    stage = DOCKERFILE.partition("AS model\n")[2].partition("\nFROM")[0]
    for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE):
        *sources, folder = line.split()
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(ROOT / source, tmp_path / folder)
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {_FETCHER}"]
    subprocess.run(command, check=True)


_FETCHER = "from engine.loading import default_model; assert callable(default_model.fetch)"


def test_image_test_looks_for_every_instruction_set() -> None:
    assert runpy.run_path(str(ROOT / "deploy/image/inside.py"))["_ISAS"] == tuple(ISAS)


def test_serving_imports_nothing_that_is_pruned() -> None:
    unused = runpy.run_path(str(ROOT / "deploy/image/prune.py"))["UNUSED"]
    code = "import sys, engine.build, engine.executor, server.app, server.serve, server.llm; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in modules
    assert [name for name in modules if _is_pruned(name.replace(".", "/"), unused)] == []


@pytest.mark.parametrize("module", ["torch._inductor.config", "sympy", "sympy.core", "numpy.lib.tests.test_io", "pip"])
def test_what_is_pruned_is_recognised(module: str) -> None:
    unused = runpy.run_path(str(ROOT / "deploy/image/prune.py"))["UNUSED"]
    assert _is_pruned(module.replace(".", "/"), unused)


def _is_pruned(path: str, patterns: dict[str, str]) -> bool:
    """Whether a module's path, or a folder above it, matches. What setuptools' hook imports is left out."""
    folders = ["/".join(path.split("/")[: count + 1]) for count in range(path.count("/") + 1)]
    patterns = {pattern: reason for pattern, reason in patterns.items() if pattern != "_distutils_hack"}
    return any(fnmatch.fnmatch(folder, pattern) for folder in folders for pattern in patterns)


def test_pruning_removes_the_list_and_leaves_the_rest(tmp_path: Path) -> None:
    kept = ["torch/nn/linear.py", "torch/testing/__init__.py", "numpy/lib/io.py", "tqdm/pip.py"]
    kept += ["torch/testing/_internal/__init__.py", "torch/testing/_internal/common_dtype.py"]
    removed = ["torch/include/a.h", "torch/testing/_internal/opinfo/b.py", "torch/testing/_internal/common_utils.py"]
    removed += ["numpy/lib/tests/c.py", "sympy-1.14.dist-info/METADATA"]
    for name in kept + removed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    prune = runpy.run_path(str(ROOT / "deploy/image/prune.py"))
    prune["main"].__globals__["STRIPPED"] = ()
    prune["main"](tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)

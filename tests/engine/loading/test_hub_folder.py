"""A hub model in a folder: whole or not there, fetched once, gone on with after a cut."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from engine.errors import ModelError
from engine.loading.hub_folder import fetch

FILES = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin"]


class Hub:
    """A hub that gives one file after the other and keeps a list of them."""

    def __init__(self) -> None:
        self.cut_before: str | None = None
        self.files = FILES
        self.given: list[str] = []

    def model_info(self, repo_id: str, revision: str) -> Any:
        siblings = [SimpleNamespace(rfilename=file) for file in self.files]
        return SimpleNamespace(sha=f"sha-of-{revision}", siblings=siblings)

    def snapshot_download(self, repo_id: str, revision: str, local_dir: Path, allow_patterns: list[str]) -> str:
        local_dir.mkdir(exist_ok=True)
        for file in allow_patterns:
            if file == self.cut_before:
                raise ConnectionError("cut")
            if not (local_dir / file).exists():
                time.sleep(0.01)  # so that a second download, were there one, would find files missing too
                (local_dir / file).write_text(f"{repo_id}@{revision}")
                self.given.append(file)
        return str(local_dir)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_folder_has_the_files_that_are_read_and_no_others(tmp_path: Path, hub: Hub) -> None:
    fetch("org/name", tmp_path / "models" / "name", "v1")
    assert visible(tmp_path / "models" / "name") == FILES[:3]
    assert (tmp_path / "models" / "name" / "config.json").read_text() == "org/name@sha-of-v1"


def test_a_folder_that_is_there_costs_no_request(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "name").mkdir()
    fetch("org/name", tmp_path / "name")
    assert hub.given == []


def test_a_cut_leaves_no_folder_and_the_next_try_goes_on(tmp_path: Path, hub: Hub) -> None:
    hub.cut_before = FILES[2]
    with pytest.raises(ModelError, match="did not give main: cut"):
        fetch("org/name", tmp_path / "models" / "name")
    assert visible(tmp_path / "models") == []
    hub.cut_before = None
    fetch("org/name", tmp_path / "models" / "name")
    assert hub.given == FILES[:3]  # each once


def test_a_download_that_returns_early_is_not_taken_for_a_model(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, local_dir, **__: local_dir.mkdir())
    with pytest.raises(ModelError, match=r"did not give config\.json, model-00001"):
        fetch("org/name", tmp_path / "models" / "name")
    assert visible(tmp_path / "models") == []


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    client_error = HfHubHTTPError.__bases__[0]  # of the HTTP client: not one of huggingface_hub's, and no OSError

    def fail(*_: Any, **__: Any) -> None:
        raise client_error("no route")

    monkeypatch.setattr(hub, "model_info", fail)
    with pytest.raises(ModelError, match="did not give main: no route"):
        fetch("org/name", tmp_path / "name")


def test_of_several_at_once_one_downloads_and_all_find_the_model(tmp_path: Path, hub: Hub) -> None:
    barrier = threading.Barrier(4)  # threads lock each other out as processes do: each opens the lock for itself

    def fetch_and_look() -> list[str]:
        barrier.wait()
        fetch("org/name", tmp_path / "name")
        return visible(tmp_path / "name")

    with ThreadPoolExecutor(4) as pool:
        seen = [pool.submit(fetch_and_look) for _ in range(4)]
    assert [future.result() for future in seen] == [FILES[:3]] * 4
    assert hub.given == FILES[:3]


@pytest.mark.parametrize(
    ("repo_id", "files", "message"),
    [
        ("smollm2", FILES, "is not a hub id"),
        ("org/name", ["config.json", "pytorch_model.bin"], r"no \.safetensors file"),
    ],
)
def test_what_cannot_be_fetched_is_named(
    tmp_path: Path, hub: Hub, repo_id: str, files: list[str], message: str
) -> None:
    hub.files = files
    with pytest.raises(ModelError, match=message):
        fetch(repo_id, tmp_path / "name")
    assert not (tmp_path / "name").exists()

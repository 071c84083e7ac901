"""From a model's name to its place on disk."""

import re
from pathlib import Path

import huggingface_hub
import pytest

from engine.errors import ModelError
from engine.loading import default_model
from engine.loading.resolve import resolve_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A hub whose answers a test sets: a path or an error, online and from the local cache; and the calls it saw."""
    state = {"online": OSError("no route to host\nmore"), "local": ValueError("not cached"), "calls": []}

    def snapshot_download(repo_id, allow_patterns, local_files_only=False):
        state["calls"].append((repo_id, local_files_only))
        assert not any(re.search(r"\.(bin|pt|pth)$", pattern) for pattern in allow_patterns), (
            "pickles are never fetched"
        )
        answer = state["local" if local_files_only else "online"]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_a_folder_is_named_after_itself(tmp_path, monkeypatch):
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert resolve_model(str(folder)).name == "my-model"
    monkeypatch.chdir(folder)
    source = resolve_model(".")
    assert (source.name, source.is_gguf) == ("my-model", False)


def test_a_gguf_file_is_named_without_its_ending(tmp_path):
    (tmp_path / "Small.Q4_1.gguf").touch()
    source = resolve_model(str(tmp_path / "Small.Q4_1.gguf"))
    assert (source.name, source.is_gguf) == ("Small.Q4_1", True)


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert resolve_model("~/m").path == tmp_path / "m"


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match=r"model\.bin is a file, but not a \.gguf file"):
        resolve_model(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("name", ["nothing-here", "/no/such/folder", "a/b/c", "../x", "org/na me"])
def test_a_name_that_can_be_nothing_is_refused_with_what_could_be(name, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no such folder or \.gguf file, and not a hub id .*smollm2-135m-instruct"):
        resolve_model(name)
    assert hub["calls"] == []


@pytest.mark.parametrize("name", [None, "smollm2-135m-instruct"])
def test_the_built_in_model_goes_by_no_name_and_by_its_own(name, monkeypatch, tmp_path):
    monkeypatch.setattr(default_model, "fetch", lambda: tmp_path / "model.gguf")
    source = resolve_model(name)
    assert (source.path, source.name) == (tmp_path / "model.gguf", "smollm2-135m-instruct")


def test_a_hub_id_is_brought_up_to_date(hub, tmp_path):
    hub["online"] = tmp_path
    source = resolve_model("org/some-model.v1")
    assert (source.path, source.name) == (tmp_path, "org/some-model.v1")
    assert hub["calls"] == [("org/some-model.v1", False)]


def test_a_hub_that_does_not_answer_leaves_the_local_cache(hub, tmp_path):
    hub["local"] = tmp_path
    assert resolve_model("org/model").path == tmp_path
    assert hub["calls"] == [("org/model", False), ("org/model", True)]


def test_a_model_neither_on_the_hub_nor_cached_says_both_in_one_line(hub):
    with pytest.raises(ModelError, match=r"not in the local hub cache, and the hub did not give it: no route to host$"):
        resolve_model("org/model")


def test_a_folder_wins_over_a_hub_id(hub, tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model").path == Path("org/model")
    assert hub["calls"] == []


@pytest.mark.parametrize("model", ["~nosuchuser/x", "x" * 5000])
def test_what_cannot_be_a_path_is_refused(model):
    with pytest.raises(ModelError, match="cannot be a path"):
        resolve_model(model)

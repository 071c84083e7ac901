"""Files that are read again when they change, by looks that the tests take themselves."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from engine.errors import ConfigError
from server import reloading
from server.config import ServerConfig
from server.http.api_keys import ApiKeys
from server.observe.families import Families
from server.observe.metrics import Metrics, Reloads
from server.reloading import ReloadedFiles, WatchedFiles, reload
from tests.support.no_engine import NoEngine

if TYPE_CHECKING:
    from pathlib import Path


def looks(files: WatchedFiles, count: int = 3) -> list[bool]:
    return [files.has_changed() for _ in range(count)]


def watched(*paths: Path) -> WatchedFiles:
    return WatchedFiles("api-keys", [str(path) for path in paths], lambda: "done")


def test_a_change_is_taken_once_it_has_lasted(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a")
    files = watched(path)
    assert looks(files) == [False, False, False]
    path.write_text("ab")
    assert looks(files) == [False, True, False]
    for text in ("abc", "abcd", "abcde"):  # it is still being written
        path.write_text(text)
        assert not files.has_changed()
    assert looks(files) == [True, False, False]


def test_a_file_that_is_gone_for_a_moment_is_no_change_and_one_that_stays_away_is(tmp_path: Path) -> None:
    path, other = tmp_path / "keys", tmp_path / "other"
    path.write_text("a")
    files = watched(path)
    path.rename(other)
    assert not files.has_changed()
    other.rename(path)
    assert looks(files)[:2] in ([False, False], [False, True])  # the file system may note the renaming
    path.unlink()
    assert looks(files) == [False, True, False]


def test_names_that_lead_elsewhere_are_followed(tmp_path: Path) -> None:
    """As Kubernetes changes a secret: `keys` -> `..data/keys`, and `..data` -> another folder, by one rename."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text("same size")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "keys").symlink_to("..data/keys")
    files = watched(tmp_path / "keys")
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").rename(tmp_path / "..data")
    assert looks(files) == [False, True, False]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """Reading it again would wait for someone who writes."""
    path = tmp_path / "keys"
    os.mkfifo(path)
    files = watched(path)
    os.utime(path, (1, 1))
    assert looks(files) == [False, False, False]
    path.unlink()
    path.write_text("a")
    assert looks(files) == [False, True, False]
    path.unlink()
    os.mkfifo(path)
    assert looks(files) == [False, False, False]


def reload_of(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"deepseek_serve_{name}", {"model_name": "m", "file": "api-keys", **labels})


def test_a_broken_file_keeps_what_was_and_says_so(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    reloads, answers = Reloads(Families(registry, "m")), [ConfigError("line 3 is at fault"), "2 keys are new"]

    def load() -> str:
        answer = answers.pop(0)
        if isinstance(answer, ConfigError):
            raise answer
        return answer

    files = WatchedFiles("api-keys", [str(tmp_path / "keys")], load)
    reloads.add("api-keys")
    assert reload_of(registry, "last_reload_successful") == 1
    reload(files, reloads)
    assert reload_of(registry, "last_reload_successful") == 0
    assert reload_of(registry, "reloads_total", result="error") == 1
    assert "line 3 is at fault" in caplog.text
    caplog.set_level(logging.INFO)
    reload(files, reloads)
    assert reload_of(registry, "last_reload_successful") == 1
    assert reload_of(registry, "reloads_total", result="ok") == 1
    assert "2 keys are new" in caplog.text


def lets_in(keys: ApiKeys, *names: str) -> list[bool]:
    return [keys.identify([(b"authorization", f"Bearer {name}".encode())]) is not None for name in names]


async def test_keys_change_with_their_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reloading, "_POLL", 0.001)
    path = tmp_path / "keys"
    path.write_text("sk-a one\nsk-b two\n")
    files = ReloadedFiles(ServerConfig(api_keys=str(path), api_key="sk-flag", max_client_requests=7))
    metrics = Metrics("m", NoEngine())
    watching = asyncio.create_task(files.watch(metrics))

    async def until(key: str, *, is_in: bool) -> None:
        async with asyncio.timeout(10):
            while lets_in(files.keys, key) != [is_in]:
                await asyncio.sleep(0.001)

    try:
        (tmp_path / "new").write_text("sk-b two\nsk-c three requests=1\n")
        os.replace(tmp_path / "new", path)
        await until("sk-a", is_in=False)
        assert lets_in(files.keys, "sk-b", "sk-c", "sk-flag") == [True, True, True]
        labels = {"model_name": "m", "key": "three", "limit": "tokens"}
        assert metrics.registry.get_sample_value("deepseek_serve_key_limited_total", labels) == 0
        path.write_text("sk-x one two three\n")
        async with asyncio.timeout(10):
            while "is at fault" not in caplog.text:
                await asyncio.sleep(0.001)
        assert lets_in(files.keys, "sk-b", "sk-c", "sk-x") == [True, True, False]
        assert "sk-x" not in caplog.text
        path.write_text("sk-x\n")
        await until("sk-x", is_in=True)
        await until("sk-b", is_in=False)
    finally:
        watching.cancel()
        await asyncio.wait({watching})
